//! Sectors of global requests and wavefronts of shared ones.

/// What one instruction of the text cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineStats {
    /// Line of the PTX text.
    pub line: u32,
    /// File and line of the source, where the text says so (`.loc`).
    pub source: Option<(u32, u32)>,
    /// Times that a warp ran it.
    pub executed: u64,
    /// Accesses to global memory, one for each warp and execution.
    pub global_requests: u64,
    /// 32-byte sectors that those touched.
    pub sectors: u64,
    /// The fewest sectors that could hold the bytes they touched.
    pub least_sectors: u64,
    /// Accesses to shared memory.
    pub shared_requests: u64,
    /// Passes over the banks that those took.
    pub wavefronts: u64,
    /// Passes that they would take with no conflict.
    pub least_wavefronts: u64,
}

impl LineStats {
    pub(crate) fn global(&mut self, accesses: &[(u32, u64)], bytes: usize) {
        let mut sectors: Vec<u64> = accesses.iter().map(|(_, address)| address / 32).collect();
        let mut touched: Vec<u64> = accesses.iter().map(|(_, address)| *address).collect();
        for list in [&mut sectors, &mut touched] {
            list.sort_unstable();
            list.dedup();
        }
        self.global_requests += 1;
        self.sectors += sectors.len() as u64;
        self.least_sectors += (touched.len() * bytes).div_ceil(32) as u64;
    }

    /// Wide accesses go in passes of as many lanes as 128 bytes serve.
    pub(crate) fn shared(&mut self, accesses: &[(u32, u64)], bytes: usize) {
        let lanes = (128 / bytes.max(4)) as u32;
        self.shared_requests += 1;
        for pass in 0..32 / lanes {
            let mut words: Vec<u64> = Vec::new();
            for (_, address) in accesses.iter().filter(|(lane, _)| lane / lanes == pass) {
                words.extend((address / 4)..(address + bytes as u64).div_ceil(4));
            }
            words.sort_unstable();
            words.dedup();
            let mut banks = [0u64; 32];
            words.iter().for_each(|word| banks[(word % 32) as usize] += 1);
            let most = banks.into_iter().max().unwrap_or(0);
            self.wavefronts += most;
            self.least_wavefronts += most.min(1);
        }
    }
}
