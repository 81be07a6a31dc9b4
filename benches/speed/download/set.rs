//! What is fetched: objects of one size, under a prefix of their own.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use berth_types::ByteSize;

/// Objects of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// 1 x 2 GiB.
    Big,
    /// 200 x 5 MiB.
    Middle,
    /// 2,000 x 20 KiB.
    Small,
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.objects(), self.size())
    }
}

impl Set {
    pub(super) const ALL: [Set; 3] = [Set::Big, Set::Middle, Set::Small];

    pub(super) fn prefix(self) -> &'static str {
        match self {
            Set::Big => "big",
            Set::Middle => "middle",
            Set::Small => "small",
        }
    }

    pub(super) fn objects(self) -> u64 {
        match self {
            Set::Big => 1,
            Set::Middle => 200,
            Set::Small => 2_000,
        }
    }

    fn size(self) -> ByteSize {
        match self {
            Set::Big => ByteSize::mib(2 << 10),
            Set::Middle => ByteSize::mib(5),
            Set::Small => ByteSize::kib(20),
        }
    }

    /// All bytes of all objects, in GiB.
    pub(super) fn gib(self) -> f64 {
        (self.objects() * self.size().0) as f64 / (1u64 << 30) as f64
    }

    fn name(at: u64) -> String {
        format!("part-{at:04}.bin")
    }

    /// Writes the objects as files: bytes that nothing compresses, the same in each run.
    pub(super) fn write(self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ self.objects();
        let mut block = vec![0u8; 1 << 20];
        for at in 0..self.objects() {
            let mut file = File::create(folder.join(Self::name(at)))?;
            let mut left = self.size().0;
            while left > 0 {
                for eight in block.chunks_exact_mut(8) {
                    // xorshift64
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    eight.copy_from_slice(&state.to_le_bytes());
                }
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
                file.write_all(&block[..now])?;
                left -= now as u64;
            }
        }
        Ok(())
    }

    /// Fails unless `fetched` holds the objects that lie in `original`: their number and sizes, and byte for byte where
    /// `contents` is set.
    pub(super) fn check(self, fetched: &Path, original: &Path, contents: bool) -> anyhow::Result<()> {
        let found = fs::read_dir(fetched).with_context(|| format!("{}", fetched.display()))?.count();
        ensure!(found as u64 == self.objects(), "{found} files in {}, {} were asked for", fetched.display(), self.objects());
        for at in 0..self.objects() {
            let (fetched, original) = (fetched.join(Self::name(at)), original.join(Self::name(at)));
            let size = fs::metadata(&fetched).with_context(|| format!("{}", fetched.display()))?.len();
            ensure!(size == self.size().0, "{} has {size} bytes, {} were asked for", fetched.display(), self.size());
            ensure!(!contents || same(&fetched, &original)?, "{} is not what {} holds", fetched.display(), original.display());
        }
        Ok(())
    }
}

fn same(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let got = one.read(&mut ours)?;
        if got == 0 {
            return Ok(other.read(&mut theirs)? == 0);
        }
        other.read_exact(&mut theirs[..got])?;
        if ours[..got] != theirs[..got] {
            return Ok(false);
        }
    }
}
