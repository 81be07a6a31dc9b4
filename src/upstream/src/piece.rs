//! What goes out at once.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Bytes that go out together, in one frame where its length allows, without being copied together: a frame of its own for
/// what stands before or behind a large body would cost a system call and a wake-up of the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece([Bytes; Piece::PARTS]);

impl Piece {
    /// How many parts one takes.
    pub const PARTS: usize = 3;

    /// The first [`PARTS`](Self::PARTS) of `parts`; `None` where there are none.
    pub fn of(parts: &mut impl Iterator<Item = Bytes>) -> Option<Piece> {
        let first = parts.next()?;
        let mut next = || parts.next().unwrap_or_default();
        Some(Piece([first, next(), next()]))
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Piece([bytes, Bytes::new(), Bytes::new()])
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.iter().find(|part| !part.is_empty()).map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let parts = self.0.iter().filter(|part| !part.is_empty());
        parts.zip(out).map(|(part, out)| *out = IoSlice::new(part)).count()
    }

    fn advance(&mut self, mut count: usize) {
        for part in &mut self.0 {
            let here = count.min(part.len());
            part.advance(here);
            count -= here;
        }
        assert_eq!(count, 0, "no more than is there");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_its_parts_one_after_the_other_wherever_it_is_cut() {
        for parts in [&["", "", ""][..], &["abc"], &["a", "bcd"], &["", "bc", "d"], &["abc", "", "defg"]] {
            let whole = parts.concat();
            let piece = Piece::of(&mut parts.iter().map(|part| Bytes::from_static(part.as_bytes()))).unwrap();
            for cut in 0..=whole.len() {
                let mut rest = piece.clone();
                rest.advance(cut);
                assert_eq!(rest.remaining(), whole.len() - cut);
                assert!(rest.chunk().is_empty() == (cut == whole.len()), "{parts:?} {cut}");
                let mut slices = [IoSlice::new(&[]); 4];
                let used = rest.chunks_vectored(&mut slices);
                let read: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(read, whole.as_bytes()[cut..]);
                assert_eq!(rest.copy_to_bytes(whole.len() - cut), whole.as_bytes()[cut..]);
            }
        }
        let mut four = ["a", "b", "c", "d"].into_iter().map(Bytes::from);
        assert_eq!(Piece::of(&mut four).map(|piece| piece.remaining()), Some(3));
        assert_eq!(Piece::of(&mut four), Some(Piece::from(Bytes::from("d"))));
        assert_eq!(Piece::of(&mut four), None);
    }
}
