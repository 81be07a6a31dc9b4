//! What is known of each blob, in a file that outlives the process: lines, each with a check of its own.
//!
//! A line is appended with one write and counts once it is complete; torn, changed and unknown lines count as not there.
//! Nothing here waits for stable storage: what a process wrote, the next one reads. After a power cut lines may be
//! missing, so a line only vouches for a file together with what the file itself shows (its length, when it was written),
//! and a range only for the file that was begun with the same turn. [`Line::Synced`] says which blobs were on stable
//! storage by then.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use berth_types::UnixMillis;

use crate::blob::{BlobId, Note, Partial, State, Trust, Whole, hex, unhex};

/// Stands for a digest that nobody computed.
const NO_DIGEST: &str = "-";

/// Version of this form. A journal of another one tells nothing.
const FORMAT: u32 = 1;

/// A journal this much longer than it would be anew is written anew.
const SLACK: u64 = 16 << 20;

/// One thing that came to be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The first line: the form, and which start of the machine wrote what follows.
    Opened { boot: Option<String> },
    /// A file of the full length was made.
    Begun { id: BlobId, turn: u64, size: u64, at: UnixMillis },
    /// These bytes of it are there.
    Done { id: BlobId, turn: u64, range: Range<u64>, note: Note, at: UnixMillis },
    /// All of it is there.
    Whole { id: BlobId, size: u64, whole: Whole, at: UnixMillis },
    /// It was last used then.
    Used { id: BlobId, at: UnixMillis },
    /// Its file is gone.
    Gone { id: BlobId },
    /// Whole blobs up to this turn are on stable storage.
    Synced { turn: u64 },
}

impl Line {
    /// Appends the line to `text`, its end included.
    pub(crate) fn write(&self, text: &mut String) {
        let start = text.len();
        // Writing to a String cannot fail.
        let _ = match self {
            Line::Opened { boot } => write!(text, "berth-blobs {FORMAT} {}", boot.as_deref().unwrap_or("-")),
            Line::Begun { id, turn, size, at } => write!(text, "begun {id} {turn} {size} {}", at.0),
            Line::Done { id, turn, range, note, at } => write!(text, "done {id} {turn} {} {} {} {}", range.start, range.end, at.0, hex(&note.0)),
            Line::Whole { id, size, whole, at } => {
                let trust = match whole.trust {
                    Trust::Synced => "synced",
                    Trust::Fresh => "fresh",
                    Trust::Doubtful => "doubtful",
                };
                let checked = whole.checked.replace(char::is_control, " ");
                write!(
                    text,
                    "whole {id} {} {size} {} {} {trust} {} {checked}",
                    whole.turn,
                    whole.written,
                    at.0,
                    whole.digest.map_or_else(|| NO_DIGEST.to_owned(), |digest| hex(&digest))
                )
            }
            Line::Used { id, at } => write!(text, "used {id} {}", at.0),
            Line::Gone { id } => write!(text, "gone {id}"),
            Line::Synced { turn } => write!(text, "synced {turn}"),
        };
        let check = check(&text[start..]);
        let _ = writeln!(text, " {check}");
    }

    /// Reads what [`Line::write`] wrote, without its end.
    fn parse(text: &[u8]) -> Option<Line> {
        let (said, sum) = std::str::from_utf8(text).ok()?.rsplit_once(' ')?;
        if check(said) != sum {
            return None;
        }
        let mut words = said.splitn(9, ' ');
        let mut word = || words.next();
        let line = match word()? {
            "berth-blobs" if number::<u32>(word()?)? == FORMAT => Line::Opened { boot: Some(word()?).filter(|boot| *boot != "-").map(str::to_owned) },
            "begun" => Line::Begun { id: BlobId::parse(word()?)?, turn: number(word()?)?, size: number(word()?)?, at: UnixMillis(number(word()?)?) },
            "done" => {
                let (id, turn) = (BlobId::parse(word()?)?, number(word()?)?);
                let range = number(word()?)?..number(word()?)?;
                let at = UnixMillis(number(word()?)?);
                Line::Done { id, turn, range, note: Note(unhex(word()?)?.into()), at }
            }
            "whole" => {
                let (id, turn, size) = (BlobId::parse(word()?)?, number(word()?)?, number(word()?)?);
                let (written, at) = (number(word()?)?, UnixMillis(number(word()?)?));
                let trust = match word()? {
                    "synced" => Trust::Synced,
                    "fresh" => Trust::Fresh,
                    "doubtful" => Trust::Doubtful,
                    _ => return None,
                };
                let digest = match word()? {
                    NO_DIGEST => None,
                    digits => Some(unhex(digits)?.try_into().ok()?),
                };
                Line::Whole { id, size, whole: Whole { digest, checked: word()?.into(), written, turn, trust }, at }
            }
            "used" => Line::Used { id: BlobId::parse(word()?)?, at: UnixMillis(number(word()?)?) },
            "gone" => Line::Gone { id: BlobId::parse(word()?)? },
            "synced" => Line::Synced { turn: number(word()?)? },
            _ => return None,
        };
        Some(line)
    }
}

/// Numbers as they are written: no sign in front, no zeros.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn check(said: &str) -> String {
    hex(&blake3::hash(said.as_bytes()).as_bytes()[..4])
}

/// What the journal knows of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) size: u64,
    pub(crate) state: State,
    pub(crate) last_use: UnixMillis,
}

impl Known {
    /// The lines that say so.
    pub(crate) fn lines(id: BlobId, size: u64, state: &State, at: UnixMillis, mut line: impl FnMut(Line)) {
        match state {
            State::Absent => {}
            State::Partial(partial) => {
                line(Line::Begun { id, turn: partial.turn, size, at });
                for (range, note) in &partial.done {
                    line(Line::Done { id, turn: partial.turn, range: range.clone(), note: note.clone(), at });
                }
            }
            State::Whole(whole) => line(Line::Whole { id, size, whole: whole.clone(), at }),
        }
    }
}

/// A journal that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// Which start of the machine wrote it; `None` when that is not known.
    pub(crate) boot: Option<String>,
    pub(crate) blobs: HashMap<BlobId, Known>,
    /// The highest turn in it.
    pub(crate) turn: u64,
    /// Lines that count as not there.
    pub(crate) ignored: usize,
}

/// Reads a journal to its end, whatever is in it. Without its first line it tells nothing: nobody knows what form it has.
pub(crate) fn replay(text: &[u8]) -> Replayed {
    let mut read = Replayed::default();
    let mut lines = text.split(|byte| *byte == b'\n').filter(|text| !text.is_empty());
    let Some(Line::Opened { boot }) = lines.next().and_then(Line::parse) else {
        read.ignored = lines.count();
        return read;
    };
    read.boot = boot;
    for text in lines {
        if !Line::parse(text).is_some_and(|line| read.take(&line)) {
            read.ignored += 1;
        }
    }
    read
}

impl Replayed {
    /// Takes in one line; false when it says nothing that fits.
    fn take(&mut self, line: &Line) -> bool {
        match line {
            Line::Opened { .. } => return false,
            Line::Begun { id, turn, size, at } => {
                self.turn = self.turn.max(*turn);
                let state = State::Partial(Partial { turn: *turn, done: Vec::new() });
                self.blobs.insert(*id, Known { size: *size, state, last_use: *at });
            }
            Line::Done { id, turn, range, note, at } => match self.blobs.get_mut(id) {
                Some(Known { size, state: State::Partial(partial), last_use }) if partial.turn == *turn => {
                    *last_use = *at;
                    return partial.add(range.clone(), note.clone(), *size).is_some();
                }
                _ => return false,
            },
            Line::Whole { id, size, whole, at } => {
                self.turn = self.turn.max(whole.turn);
                self.blobs.insert(*id, Known { size: *size, state: State::Whole(whole.clone()), last_use: *at });
            }
            Line::Used { id, at } => {
                if let Some(known) = self.blobs.get_mut(id) {
                    known.last_use = *at;
                }
            }
            Line::Gone { id } => {
                self.blobs.remove(id);
            }
            Line::Synced { turn } => {
                for known in self.blobs.values_mut() {
                    if let State::Whole(whole) = &mut known.state
                        && whole.turn <= *turn
                        && whole.trust == Trust::Fresh
                    {
                        whole.trust = Trust::Synced;
                    }
                }
            }
        }
        true
    }
}

/// The journal's file, open for more.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    /// Its length when it was written anew.
    anew: u64,
    /// A write broke off: the next one begins on a line of its own.
    torn: bool,
}

impl Journal {
    /// Writes a journal anew, with what `lines` says, in the place of the one before. A power cut soon after may leave either,
    /// or nothing: then blobs are unknown, and are fetched again.
    pub(crate) fn create(path: &Path, lines: impl FnOnce(&mut dyn FnMut(Line))) -> io::Result<Self> {
        let beside = path.with_extension("journal.new");
        let mut file = io::BufWriter::with_capacity(64 << 10, File::create(&beside)?);
        let (mut text, mut length, mut outcome) = (String::new(), 0, Ok(()));
        lines(&mut |line| {
            text.clear();
            line.write(&mut text);
            length += text.len() as u64;
            if outcome.is_ok() {
                outcome = file.write_all(text.as_bytes());
            }
        });
        outcome?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        std::fs::rename(&beside, path)?;
        let file = File::options().append(true).open(path)?;
        Ok(Journal { path: path.to_owned(), file, length, anew: length, torn: false })
    }

    /// Appends lines with one write: all of them count, or only the first few.
    pub(crate) fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = String::with_capacity(lines.len() * 160);
        if self.torn {
            text.push('\n');
        }
        lines.iter().for_each(|line| line.write(&mut text));
        let outcome = self.file.write_all(text.as_bytes());
        self.torn = outcome.is_err();
        self.length += text.len() as u64;
        outcome.map_err(|fault| io::Error::new(fault.kind(), format!("{}: {fault}", self.path.display())))
    }

    /// True when most of it is history.
    pub(crate) fn is_oversized(&self) -> bool {
        self.length > self.anew.saturating_mul(2).saturating_add(SLACK)
    }

    /// It could not be written anew: not to be tried with each line.
    pub(crate) fn leave_oversized(&mut self) {
        self.anew = self.length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> BlobId {
        BlobId([n; 16])
    }

    fn whole(turn: u64, trust: Trust) -> Whole {
        Whole { digest: turn.is_multiple_of(2).then_some([7; 32]), checked: "md5 and crc32c".into(), written: -5, turn, trust }
    }

    fn text(lines: &[Line]) -> String {
        let mut text = String::new();
        lines.iter().for_each(|line| line.write(&mut text));
        text
    }

    fn ranges(read: &Replayed, n: u8) -> Vec<Range<u64>> {
        match &read.blobs[&id(n)].state {
            State::Partial(partial) => partial.done.iter().map(|(range, _)| range.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }

    const AT: UnixMillis = UnixMillis(9);

    fn done(n: u8, turn: u64, range: Range<u64>) -> Line {
        Line::Done { id: id(n), turn, range, note: Note::default(), at: AT }
    }

    #[test]
    fn every_line_reads_back() {
        for line in [
            Line::Opened { boot: Some("0-1-2".to_owned()) },
            Line::Opened { boot: None },
            Line::Begun { id: id(1), turn: 3, size: u64::MAX, at: AT },
            done(1, 3, 0..5),
            Line::Done { id: id(1), turn: 3, range: 5..u64::MAX, note: Note((0..64).collect()), at: AT },
            Line::Whole { id: id(2), size: 0, whole: whole(4, Trust::Synced), at: AT },
            Line::Whole { id: id(2), size: 1, whole: Whole { checked: "".into(), ..whole(4, Trust::Fresh) }, at: AT },
            Line::Whole { id: id(2), size: 1, whole: whole(4, Trust::Doubtful), at: AT },
            Line::Used { id: id(1), at: AT },
            Line::Gone { id: id(1) },
            Line::Synced { turn: 8 },
        ] {
            let text = text(std::slice::from_ref(&line));
            assert_eq!(Line::parse(text.trim_end_matches('\n').as_bytes()), Some(line), "{text}");
        }
    }

    #[test]
    fn words_cannot_break_out_of_their_line() {
        let odd = Whole { checked: "a\nb\rc".into(), ..whole(1, Trust::Fresh) };
        let read = replay(text(&[Line::Opened { boot: None }, Line::Whole { id: id(1), size: 1, whole: odd, at: AT }]).as_bytes());
        assert_eq!((read.ignored, read.blobs.len()), (0, 1));
    }

    #[test]
    fn the_last_word_on_a_blob_counts() {
        let lines = [
            Line::Opened { boot: Some("b".to_owned()) },
            Line::Begun { id: id(1), turn: 1, size: 10, at: AT },
            done(1, 1, 4..6),
            done(1, 1, 0..2),
            done(1, 1, 5..7),  // in the place of 4..6
            done(1, 1, 8..11), // outside
            Line::Begun { id: id(2), turn: 2, size: 10, at: AT },
            done(2, 2, 0..5),
            Line::Begun { id: id(2), turn: 3, size: 10, at: AT },
            done(2, 2, 5..7), // of the file before
            Line::Whole { id: id(3), size: 3, whole: whole(4, Trust::Fresh), at: AT },
            Line::Synced { turn: 4 },
            Line::Whole { id: id(4), size: 3, whole: whole(5, Trust::Fresh), at: AT },
            Line::Whole { id: id(5), size: 3, whole: whole(6, Trust::Doubtful), at: AT },
            Line::Synced { turn: 4 },
            Line::Used { id: id(4), at: UnixMillis(77) },
            Line::Whole { id: id(6), size: 3, whole: whole(7, Trust::Fresh), at: AT },
            Line::Gone { id: id(6) },
            Line::Used { id: id(6), at: AT },
        ];
        let read = replay(text(&lines).as_bytes());
        assert_eq!((read.boot.as_deref(), read.turn, read.ignored), (Some("b"), 7, 2));
        assert_eq!((ranges(&read, 1), ranges(&read, 2)), (vec![0..2, 5..7], vec![]));
        let trust = |n: u8| match &read.blobs[&id(n)].state {
            State::Whole(whole) => whole.trust,
            other => panic!("{other:?}"),
        };
        assert_eq!((trust(3), trust(4), trust(5)), (Trust::Synced, Trust::Fresh, Trust::Doubtful));
        assert_eq!(read.blobs[&id(4)].last_use, UnixMillis(77));
        assert!(!read.blobs.contains_key(&id(6)));
    }

    #[test]
    fn a_write_that_broke_off_costs_its_own_lines_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("blobs.journal");
        let mut journal = Journal::create(&path, |line| line(Line::Opened { boot: None })).expect("made");
        journal.append(&[Line::Begun { id: id(1), turn: 1, size: 10, at: AT }]).expect("written");
        let torn = text(&[done(1, 1, 0..5)]);
        journal.file.write_all(&torn.as_bytes()[..torn.len() / 2]).expect("written");
        journal.torn = true;
        journal.append(&[done(1, 1, 5..6)]).expect("written");
        let read = replay(&std::fs::read(&path).expect("there"));
        assert_eq!((ranges(&read, 1).first(), read.ignored), (Some(&(5..6)), 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn a_journal_cut_anywhere_tells_what_was_complete_by_then(cut in 0usize..2000, ends in proptest::collection::vec(1u64..5, 1..12)) {
            let mut lines = vec![Line::Opened { boot: Some("b".to_owned()) }, Line::Begun { id: id(1), turn: 1, size: 1000, at: AT }];
            let mut at = 0;
            for length in ends {
                lines.push(done(1, 1, at..at + length));
                at += length;
            }
            let whole = text(&lines);
            let cut = cut.min(whole.len());
            let read = replay(&whole.as_bytes()[..cut]);
            // A line without its end counts too: its check is there.
            let complete = whole.as_bytes()[..cut].iter().filter(|byte| **byte == b'\n').count() + usize::from(whole.as_bytes().get(cut) == Some(&b'\n'));
            let ranges = if complete < 2 { 0 } else { ranges(&read, 1).len() };
            prop_assert_eq!(ranges, complete.saturating_sub(2));
        }

        #[test]
        fn changed_bytes_never_make_a_line_say_something_else(at in 0usize..400, byte in any::<u8>(), garbage in proptest::collection::vec(any::<u8>(), 0..40)) {
            let lines = [
                Line::Opened { boot: Some("b".to_owned()) },
                Line::Begun { id: id(1), turn: 1, size: 10, at: AT },
                done(1, 1, 0..5),
                Line::Whole { id: id(2), size: 3, whole: whole(4, Trust::Fresh), at: AT },
            ];
            let said = replay(text(&lines).as_bytes());
            let mut bytes = text(&lines).into_bytes();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.extend(garbage);
            let read = replay(&bytes);
            for (id, known) in &read.blobs {
                let before = said.blobs.get(id).expect("no blob that was not there");
                match (&known.state, &before.state) {
                    (State::Partial(now), State::Partial(then)) => prop_assert!(now.done.is_empty() || now == then),
                    (now, then) => prop_assert_eq!(now, then),
                }
            }
            prop_assert!(read.boot.is_none() || read.boot == said.boot);
        }
    }
}
