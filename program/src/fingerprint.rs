//! Names of content: hashes that are the same on every machine.

/// The 128-bit hash of what `parts` make; equal bytes parted elsewhere have another.
pub fn fingerprint(parts: &[&[u8]]) -> u128 {
    // FNV-1a; lengths keep parts apart
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut byte = |b: u8| hash = (hash ^ u128::from(b)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
    for part in parts {
        (part.len() as u64).to_le_bytes().into_iter().chain(part.iter().copied()).for_each(&mut byte);
    }
    hash
}
