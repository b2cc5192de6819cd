//! Just enough of CUBINs to see where spilled registers are read: ELF sections of code, local loads and stores, branches.
//!
//! An instruction is 16 bytes from 7.0 on, its opcode the lowest 12 bits. The place that a branch names is words from the
//! next instruction: 48 bits from bit 34 on; from 9.0 on these are the upper ones, and bits 16 to 23 the lowest eight.

const INSTRUCTION: usize = 16;
const LOAD_LOCAL: u128 = 0x983;
const STORE_LOCAL: u128 = 0x387;
const BRANCH: u128 = 0x947;

/// The code of each function of a CUBIN, by name; `None` of what is no ELF file of 64 bits.
pub fn code(cubin: &[u8]) -> Option<Vec<(&str, &[u8])>> {
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(cubin.get(at..at + 2)?.try_into().ok()?)));
    let word = |at: usize| Some(u32::from_le_bytes(cubin.get(at..at + 4)?.try_into().ok()?) as usize);
    let long = |at: usize| Some(u64::from_le_bytes(cubin.get(at..at + 8)?.try_into().ok()?) as usize);
    cubin.starts_with(b"\x7fELF\x02").then_some(())?;
    let (headers, size, count, names) = (long(0x28)?, half(0x3a)?, half(0x3c)?, half(0x3e)?);
    let names = long(headers + names * size + 0x18)?;
    let mut found = Vec::new();
    for header in (0..count).map(|i| headers + i * size) {
        let name = cubin.get(names + word(header)?..)?;
        let name = std::str::from_utf8(&name[..name.iter().position(|b| *b == 0)?]).ok()?;
        if let Some(name) = name.strip_prefix(".text.") {
            let (first, len) = (long(header + 0x18)?, long(header + 0x20)?);
            found.push((name, cubin.get(first..first + len)?));
        }
    }
    Some(found)
}

/// Local loads and stores of a CUBIN for an architecture: in all, and those in innermost loops.
pub fn spills(cubin: &[u8], arch: &str) -> Option<(usize, usize)> {
    let number: String = arch.chars().filter(char::is_ascii_digit).collect();
    let split = number.parse::<u32>().ok()? >= 90;
    let (mut all, mut innermost) = (0, 0);
    for (_, code) in code(cubin)? {
        let instructions: Vec<u128> =
            code.chunks_exact(INSTRUCTION).map(|bytes| u128::from_le_bytes(bytes.try_into().unwrap())).collect();
        // from the first to the last instruction of each loop
        let mut loops: Vec<(usize, usize)> = Vec::new();
        for (at, instruction) in instructions.iter().enumerate().filter(|(_, i)| *i & 0xfff == BRANCH) {
            let high = ((instruction >> 34) as i64) << 16 >> 16;
            let words = if split { high << 8 | (instruction >> 16) as i64 & 0xff } else { high };
            let to = (at + 1) as i64 + words / 4;
            // a branch to itself ends the code
            if to >= 0 && to < at as i64 {
                loops.push((to as usize, at));
            }
        }
        let holds = |outer: &(usize, usize), inner: &(usize, usize)| outer.0 <= inner.0 && inner.1 <= outer.1;
        let is_innermost = |l: &&(usize, usize)| !loops.iter().any(|other| other != *l && holds(l, other));
        for (at, _) in instructions.iter().enumerate().filter(|(_, i)| matches!(*i & 0xfff, LOAD_LOCAL | STORE_LOCAL)) {
            all += 1;
            innermost += usize::from(loops.iter().filter(is_innermost).any(|l| (l.0..=l.1).contains(&at)));
        }
    }
    Some((all, innermost))
}
