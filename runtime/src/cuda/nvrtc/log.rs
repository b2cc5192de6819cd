//! Reading NVRTC's log.

/// What ptxas reports of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The kernel's name.
    pub name: String,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared memory a block.
    pub shared_bytes: u32,
    /// Stack a thread.
    pub stack_bytes: u32,
    /// Bytes stored and loaded by spills.
    pub spill_bytes: u32,
}

/// The number before a phrase such as ` registers`.
fn number_before(line: &str, phrase: &str) -> Option<u32> {
    let (before, _) = line.split_once(phrase)?;
    let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
    before.get(digits..)?.parse().ok()
}

/// The resources of each kernel that the log names.
pub(super) fn resources(log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            kernels.push(Resources { name: name.into(), ..Resources::default() });
        }
        let Some(kernel) = kernels.last_mut() else {
            continue;
        };
        let number = |phrase| number_before(line, phrase);
        kernel.registers = number(" registers").unwrap_or(kernel.registers);
        kernel.shared_bytes = number(" bytes smem").unwrap_or(kernel.shared_bytes);
        kernel.stack_bytes = number(" bytes stack frame").unwrap_or(kernel.stack_bytes);
        kernel.spill_bytes += number(" bytes spill stores").unwrap_or(0);
        kernel.spill_bytes += number(" bytes spill loads").unwrap_or(0);
    }
    kernels
}

/// A line that tells of code that ptxas could not compile well.
pub(super) fn advisory(log: &str) -> Option<&str> {
    log.lines().find(|line| line.contains("Potential Performance Loss") || line.contains("(C7"))
}

/// The lines of the source around the first error of a log, numbered, the faulty one marked.
pub(super) fn excerpt(source: &str, log: &str) -> String {
    const CONTEXT: usize = 4;
    let faulty = log.lines().filter(|l| l.contains("error")).find_map(|l| {
        let (_, rest) = l.split_once(".cu(")?;
        rest.split(')').next()?.parse::<usize>().ok()
    });
    let Some(faulty) = faulty else {
        return String::new();
    };
    let lines = (1usize..).zip(source.lines());
    let near = lines.filter(|(n, _)| n.abs_diff(faulty) <= CONTEXT);
    let numbered = near.map(|(n, line)| format!("{} {n:4} | {line}\n", if n == faulty { '>' } else { ' ' }));
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k_1' for 'sm_80'
ptxas info    : Function properties for k_1
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem, 400 bytes cmem[0]";

    #[test]
    fn reads_resources() {
        let expected =
            Resources { name: "k_1".into(), registers: 40, shared_bytes: 1024, stack_bytes: 8, spill_bytes: 16 };
        assert_eq!(resources(LOG), [expected]);
        assert_eq!(resources("nothing of use"), []);
    }

    #[test]
    fn finds_advisories() {
        assert_eq!(advisory(LOG), None);
        assert!(advisory("x\nptxas info : (C7510) Potential Performance Loss: …").is_some());
    }

    #[test]
    fn shows_the_faulty_line() {
        let shown = excerpt("a\nb\nc\n", "k.cu(2): error: identifier \"b\" is undefined");
        assert_eq!(shown, "     1 | a\n>    2 | b\n     3 | c\n");
        assert_eq!(excerpt("a", "no line"), "");
    }
}
