//! Global memory: named allocations with guard space between them.

use crate::error::FaultKind;

/// The first allocation's address.
const BASE: u64 = 0x7_0000_0000;
/// Addresses that stay free behind each allocation.
const GUARD: u64 = 64 << 10;
/// Alignment of allocations, as the driver's.
const ALIGN: u64 = 256;

/// The device's global memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    allocations: Vec<Allocation>,
}

#[derive(Clone, Debug)]
struct Allocation {
    name: String,
    base: u64,
    data: Vec<u8>,
    constant: bool,
}

impl Memory {
    /// Memory without allocations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates bytes under a name and gives their address.
    pub fn allocate(&mut self, name: &str, data: Vec<u8>) -> u64 {
        self.insert(name, data, false)
    }

    /// Allocates f32 values under a name and gives their address.
    pub fn allocate_f32(&mut self, name: &str, values: &[f32]) -> u64 {
        self.allocate(name, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Takes an allocation away by its address; whether there was one.
    pub fn free(&mut self, address: u64) -> bool {
        let found = self.allocations.binary_search_by_key(&address, |allocation| allocation.base);
        found.map(|index| self.allocations.remove(index)).is_ok()
    }

    /// Bytes of an allocation by its address.
    pub fn size(&self, address: u64) -> Option<usize> {
        let found = self.allocations.binary_search_by_key(&address, |allocation| allocation.base);
        found.ok().map(|index| self.allocations[index].data.len())
    }

    /// Bytes at an address, within one allocation.
    ///
    /// # Errors
    /// When they are not.
    pub fn read(&self, address: u64, bytes: usize) -> Result<&[u8], FaultKind> {
        let (index, offset) = self.locate(address, bytes, false)?;
        Ok(&self.allocations[index].data[offset..offset + bytes])
    }

    /// Bytes at an address, within one allocation, to be changed.
    ///
    /// # Errors
    /// When they are not, or are constant.
    pub fn write(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], FaultKind> {
        let (index, offset) = self.locate(address, bytes, true)?;
        Ok(&mut self.allocations[index].data[offset..offset + bytes])
    }

    /// The address of a variable of a module, which is allocated when it is first asked for.
    pub(crate) fn variable(&mut self, name: &str, data: &[u8], constant: bool) -> u64 {
        match self.find(name) {
            Some(allocation) => allocation.base,
            None => self.insert(name, data.to_vec(), constant),
        }
    }

    fn insert(&mut self, name: &str, data: Vec<u8>, constant: bool) -> u64 {
        let end = self.allocations.last().map_or(BASE, |last| last.base + last.data.len() as u64 + GUARD);
        let base = end.next_multiple_of(ALIGN);
        self.allocations.push(Allocation { name: name.to_string(), base, data, constant });
        base
    }

    fn find(&self, name: &str) -> Option<&Allocation> {
        self.allocations.iter().find(|allocation| allocation.name == name)
    }

    /// The bytes under a name.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.find(name).map(|allocation| &*allocation.data)
    }

    /// The f32 values under a name.
    pub fn f32s(&self, name: &str) -> Option<Vec<f32>> {
        let (values, _) = self.bytes(name)?.as_chunks();
        Some(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
    }

    /// Where an access lies: the allocation's index and the offset in it.
    pub(crate) fn locate(&self, address: u64, bytes: usize, write: bool) -> Result<(usize, usize), FaultKind> {
        let index = self.allocations.partition_point(|allocation| allocation.base <= address).checked_sub(1);
        let fault = |near| FaultKind::OutOfBounds { space: "global", address, bytes, near };
        let Some(index) = index else { return Err(fault(String::new())) };
        let allocation = &self.allocations[index];
        let offset = (address - allocation.base) as usize;
        if allocation.data.len().checked_sub(bytes).is_none_or(|last| offset > last) {
            let near = format!(", byte {offset} of `{}`, which has {}", allocation.name, allocation.data.len());
            return Err(fault(near));
        }
        if write && allocation.constant {
            return Err(FaultKind::ReadOnly(allocation.name.clone()));
        }
        Ok((index, offset))
    }

    /// The bytes of an allocation.
    pub(crate) fn data(&mut self, index: usize) -> &mut [u8] {
        &mut self.allocations[index].data
    }
}
