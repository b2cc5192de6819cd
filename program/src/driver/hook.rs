//! The ABI at which drivers call compiled code.
//!
//! A hook sees only 2-D views that already point at its tile: it knows nothing of layouts, so equal epilogues have equal
//! text. Hooks may be called from several threads at once, on tiles that do not overlap.

/// A 2-D view of some element type: element (i, j) is at `ptr + (i * row + j * col) * size_of(element)`.
///
/// `col` is 0 (the same for all columns) or 1. `row` may be anything; 0 for an operand that is the same for all rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct View2 {
    /// Element (0, 0).
    pub ptr: *mut u8,
    /// Elements from a row to the next.
    pub row: i64,
    /// Elements from a column to the next: 0 or 1.
    pub col: i64,
}

impl View2 {
    /// A view of nothing.
    pub const NULL: View2 = View2 { ptr: std::ptr::null_mut(), row: 0, col: 0 };
}

/// Turns a tile of the accumulator (`acc`, of `f32`, `i32` or `f64` as the driver sums; row-major, `rows` x `cols`) into outputs.
///
/// `extras` and `outs` are arrays with as many views as the driver was given operands and outputs. `outs` never overlap
/// `acc` or `extras`, except that an output may be an extra read at the same element.
///
/// - product: rows and columns are those of C;
/// - convolution: a row is a pixel, a column a channel (at most `L` columns, one block, a call for each output row);
/// - several calls of one step may come from several threads.
pub type EpilogueFn =
    unsafe extern "C" fn(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2);

/// Finishes whole rows of a product: `cols` is all of N. `acc` may be written to (it is scratch).
pub type RowsFn = EpilogueFn;

/// Makes scores of raw dots in place of attention: `acc` holds `rows` queries x `cols` keys (always row-major, `col` = 1)
/// and is both input and output: `outs[0]` is the same view as `acc`.
pub type ScoreFn = EpilogueFn;
