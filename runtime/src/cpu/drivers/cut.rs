//! How work is cut into chunks for a team. Chunks never change a result.

/// Part `i` of `n` of `0..len`, as even as can be.
pub(crate) fn part(len: usize, i: usize, n: usize) -> (usize, usize) {
    (len * i / n, len * (i + 1) / n)
}

/// How many chunks work of `units` is cut into: at least `least` (for the caches), and several for each thread.
pub(crate) fn chunk_count(units: usize, least: usize, threads: usize) -> usize {
    let wanted = if threads == 1 { 1 } else { 4 * threads };
    least.max(wanted).clamp(1, units.max(1))
}

/// Rows of a grid of chunks with `columns` columns: at least `least` and at most `units`, and where there are such, so many
/// that each thread gets as many chunks as another.
pub(crate) fn even_rows(units: usize, least: usize, columns: usize, threads: usize) -> usize {
    let least = least.clamp(1, units.max(1));
    let even = (least..=units.min(least + threads)).find(|rows| (rows * columns).is_multiple_of(threads));
    even.unwrap_or(least)
}

/// Into how many parts rows are cut, each with as many chunks of panels, so that a team is busy: the fewest that leave the least
/// waiting, at most four, because each reads the weights again.
pub(crate) fn row_cuts(chunks: usize, rows: usize, threads: usize) -> usize {
    const MOST: usize = 4;
    // the longest thread's share of the work, in rows of all panels
    let longest = |cuts: usize| (cuts * chunks).div_ceil(threads) * rows.div_ceil(cuts);
    (1..=MOST.min(rows.max(1))).min_by_key(|cuts| longest(*cuts)).unwrap_or(1)
}

/// Blocks of lines, the rows of all images, and of blocks of channels: by lines, as convolutions write them, so that a thread
/// finds in its cache what it reads; by blocks too where lines are few.
pub(crate) fn lines_by_blocks(lines: usize, blocks: usize, threads: usize) -> (usize, usize) {
    let by_line = chunk_count(lines, 1, threads);
    let by_block = if by_line < threads { (4 * threads).div_ceil(by_line) } else { 1 };
    (by_line, by_block.min(blocks))
}

/// Rows of items, cut into chunks that several operations share: blocks of rows, one item after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowCut {
    /// Items.
    pub(crate) items: usize,
    /// Rows of an item, at least one.
    pub(crate) height: usize,
    /// Rows that stay together, at least one; the last ones of an item may be fewer.
    pub(crate) together: usize,
    /// Chunks, at most as many as blocks of rows.
    pub(crate) chunks: usize,
}

impl RowCut {
    /// Blocks of rows of an item.
    fn units(&self) -> usize {
        self.height.div_ceil(self.together)
    }

    /// The rows of a chunk, item by item.
    pub(crate) fn rows(self, chunk: usize) -> impl Iterator<Item = (usize, (usize, usize))> {
        let units = self.units();
        let (mut first, end) = part(self.items * units, chunk, self.chunks);
        std::iter::from_fn(move || {
            let (item, begin) = (first / units, first % units);
            let last = units.min(begin + end - first);
            let rows = (begin * self.together, (last * self.together).min(self.height));
            first += last - begin;
            (begin < last).then_some((item, rows))
        })
    }

    /// The chunk of a row, and the end of that chunk's rows of the same item.
    pub(crate) fn chunk_of(&self, item: usize, row: usize) -> (usize, usize) {
        let units = self.units();
        let all = self.items * units;
        let chunk = ((item * units + row / self.together + 1) * self.chunks).div_ceil(all) - 1;
        let end = part(all, chunk, self.chunks).1 - item * units;
        (chunk, (end * self.together).min(self.height))
    }
}

/// Multiply-adds of a thread in the time in which a second-level cache delivers a float.
const PRODUCTS_A_FLOAT: f64 = 12.0;

/// How much longer a float takes from another core's cache.
const ELSEWHERE: usize = 4;

/// Which part of an image in blocked channels each thread of a team wrote, and so has in its cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Rows, of all channels.
    #[default]
    Rows,
    /// Channels, of all rows.
    Channels,
    /// Neither: what a thread reads, others wrote.
    Mixed,
}

impl Spread {
    /// Of what so many blocks of rows and of channels write, a block of rows after the other.
    pub(crate) fn of((rows, channels): (usize, usize), threads: usize) -> Spread {
        match (rows >= threads, rows == 1 && channels >= threads) {
            (true, _) => Spread::Rows,
            (_, true) => Spread::Channels,
            _ => Spread::Mixed,
        }
    }
}

/// A loop nest whose chunks are blocks of rows by blocks of panels of weights: each reads its rows of the input, of the
/// groups of its panels, and its weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nest2 {
    /// Rows.
    pub(crate) rows: usize,
    /// Rows that stay together; the last ones may be fewer.
    pub(crate) together: usize,
    /// Panels.
    pub(crate) panels: usize,
    /// Parts of the panels that read nothing in common.
    pub(crate) groups: usize,
    /// Floats of the input that all rows read.
    pub(crate) input: usize,
    /// Who wrote the input.
    pub(crate) spread: Spread,
    /// Floats of all weights.
    pub(crate) weights: usize,
    /// Multiply-adds of all.
    pub(crate) products: usize,
}

impl Nest2 {
    /// Blocks of rows and of panels for a team of at least two: those of the least time for what is computed by the thread
    /// that has most of it, and for what all read. A chunk that comes late costs a part of itself, so that there are more
    /// than one for each thread.
    pub(crate) fn cut(&self, threads: usize) -> (usize, usize) {
        let most = 4 * threads;
        let mut best = (f64::INFINITY, (1, 1));
        // 1, 2, 3, 4, 6, 8, 12, …
        let counts = (0..usize::BITS - 1).flat_map(|i| [1 << i, (1 << i) + (1 << i) / 2]);
        for panels in counts.take_while(|panels| *panels <= most).map(|panels| panels.clamp(1, self.panels.max(1))) {
            for chunks in [threads, 2 * threads, most] {
                let rows = (chunks / panels).clamp(1, self.units().max(1));
                let cost = self.cost((rows, panels), threads);
                if cost < best.0 {
                    best = (cost, (rows, panels));
                }
            }
        }
        best.1
    }

    /// Blocks of rows, at most.
    fn units(&self) -> usize {
        self.rows.div_ceil(self.together.max(1))
    }

    /// The time of a thread, in floats read.
    fn cost(&self, (rows, panels): (usize, usize), threads: usize) -> f64 {
        let chunks = rows * panels;
        let most_rows = (self.units().div_ceil(rows) * self.together).min(self.rows);
        let largest = most_rows * self.panels.div_ceil(panels);
        let share = largest as f64 / (self.rows * self.panels).max(1) as f64;
        let computed = self.products as f64 / PRODUCTS_A_FLOAT * share * (chunks.div_ceil(threads) as f64 + 0.25);
        // what another thread wrote is in its cache
        let is_own = match self.spread {
            Spread::Rows => panels == 1 || self.groups >= panels && rows >= threads,
            Spread::Channels => rows == 1 && self.groups >= panels,
            Spread::Mixed => false,
        };
        let input = self.input * panels.div_ceil(self.groups.max(1)) * if is_own { 1 } else { ELSEWHERE };
        computed + (rows * self.weights + input) as f64 / threads.min(chunks) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_even() {
        assert_eq!(even_rows(111, 7, 1, 2), 8);
        assert_eq!(even_rows(28, 3, 1, 4), 4);
        assert_eq!(even_rows(28, 3, 2, 4), 4);
        assert_eq!(even_rows(3, 3, 1, 2), 3);
        assert_eq!(even_rows(0, 0, 1, 2), 1);
        assert_eq!(even_rows(9, 1, 1, 1), 1);
    }

    #[test]
    fn each_row_is_of_one_chunk() {
        for (items, height, together) in [(1, 14, 1), (1, 7, 2), (3, 5, 2), (2, 1, 1)] {
            for chunks in 1..=items * usize::div_ceil(height, together) {
                let cut = RowCut { items, height, together, chunks };
                let all: Vec<_> = (0..chunks).flat_map(|c| cut.rows(c).map(move |rows| (c, rows))).collect();
                let rows = |&(chunk, (item, (first, end))): &(usize, (usize, (usize, usize)))| {
                    (first..end).map(move |row| (item, row, (chunk, end)))
                };
                let want = (0..items).flat_map(|item| (0..height).map(move |row| (item, row)));
                assert!(all.iter().flat_map(rows).map(|(item, row, _)| (item, row)).eq(want));
                assert!(all.iter().flat_map(rows).all(|(item, row, of)| cut.chunk_of(item, row) == of));
            }
        }
    }

    #[test]
    fn few_lines_are_cut_by_blocks() {
        assert_eq!(lines_by_blocks(14, 17, 1), (1, 1));
        assert_eq!(lines_by_blocks(14, 17, 2), (8, 1));
        assert_eq!(lines_by_blocks(1, 17, 2), (1, 8));
        assert_eq!(lines_by_blocks(1, 3, 2), (1, 3));
        assert_eq!(lines_by_blocks(0, 0, 2), (1, 0));
    }

    #[test]
    fn what_is_larger_is_read_once() {
        // 13×13 pixels of 48 channels to 192 by 3×3, and 112×112 of 16 to 64 by 1×1
        let late = Nest2 {
            rows: 13,
            together: 1,
            panels: 6,
            groups: 1,
            input: 48 * 15 * 15,
            spread: Spread::Rows,
            weights: 9 * 48 * 192,
            products: 169 * 9 * 48 * 192,
        };
        let early =
            Nest2 { rows: 112, panels: 2, input: 16 * 112 * 112, weights: 1024, products: 112 * 112 * 1024, ..late };
        // 14×14 of 272 channels, each with its own 3×3
        let depthwise = Nest2 {
            rows: 14,
            panels: 17,
            groups: 17,
            input: 272 * 16 * 16,
            weights: 9 * 272,
            products: 2 * 196 * 9 * 272,
            ..late
        };
        assert_eq!(late.cut(2), (1, 6));
        assert_eq!(early.cut(2), (8, 1));
        assert!(depthwise.cut(2).0 >= 2);
        for threads in 2..9 {
            for nest in [late, early, depthwise] {
                let (rows, panels) = nest.cut(threads);
                assert!(rows <= nest.rows && panels <= nest.panels && rows * panels >= threads);
            }
        }
    }

    /// Four groups of 1×1, of 136 channels to 136 at 7×7, of which two rows stay together, and of 68 to 68 at 14×14.
    #[test]
    fn groups_stay_with_who_wrote_them() {
        let late = Nest2 {
            rows: 7,
            together: 2,
            panels: 20,
            groups: 4,
            input: 544 * 49,
            spread: Spread::Channels,
            weights: 544 * 136,
            products: 49 * 544 * 136,
        };
        // three of the four blocks of rows are whole: four rows beside three
        assert_eq!(late.cut(2).0, 1);
        assert_eq!(Nest2 { spread: Spread::Rows, ..late }.cut(2).0, 1);
        let early = Nest2 {
            rows: 14,
            together: 1,
            panels: 12,
            input: 272 * 196,
            spread: Spread::Rows,
            weights: 272 * 68,
            products: 196 * 272 * 68,
            ..late
        };
        assert!(early.cut(2).0 >= 2);
        assert_eq!(Nest2 { spread: Spread::Channels, ..early }.cut(2).0, 1);
        // each channel by itself, from a mixture: even blocks of channels beside uneven ones of rows
        let depthwise = Nest2 {
            panels: 34,
            groups: 34,
            spread: Spread::Mixed,
            weights: 9 * 544,
            products: 2 * 49 * 9 * 544,
            ..late
        };
        assert_eq!(depthwise.cut(2).0, 1);
        assert!(Nest2 { spread: Spread::Rows, ..depthwise }.cut(2).0 >= 2);
    }

    #[test]
    fn nothing_is_cut_from_nothing() {
        let none = Nest2 {
            rows: 0,
            together: 0,
            panels: 0,
            groups: 0,
            input: 0,
            spread: Spread::Rows,
            weights: 0,
            products: 0,
        };
        assert_eq!(none.cut(2), (1, 1));
    }
}
