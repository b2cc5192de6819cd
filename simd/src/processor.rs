//! What processor this is.

/// The name and the signature of the host's processor, for what was measured on it; empty where nothing tells them.
///
/// x86-64: the brand and the family, model and stepping of `cpuid`, which tell apart what a hypervisor calls the same. Linux on
/// AArch64: the main identification register.
pub fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        const BRAND: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
        let mut brand = Vec::new();
        if __cpuid(0x8000_0000).eax >= *BRAND.end() {
            for leaf in BRAND {
                let part = __cpuid(leaf);
                brand.extend([part.eax, part.ebx, part.ecx, part.edx].into_iter().flat_map(u32::to_le_bytes));
            }
        }
        let brand = String::from_utf8_lossy(&brand);
        format!("{} {:08x}", brand.trim_matches(['\0', ' ']), __cpuid(1).eax)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let register = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1";
        std::fs::read_to_string(register).map(|text| text.trim().to_string()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_each_time() {
        assert_eq!(processor(), processor());
        assert!(!cfg!(target_arch = "x86_64") || processor().len() >= 9, "{}", processor());
    }
}
