//! A model's folder in the tier: its manifest and its files.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use berth_types::{ByteSize, ModelId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::blob::{BlobId, Record, UNVERIFIED, hex, unhex};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const FILES: &str = "files";

/// Version of the manifest's form; content of another one is fetched anew.
const FORMAT: u32 = 2;

/// What a content folder holds. Written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) model: ModelId,
    /// Where it came from, without secrets.
    pub(crate) source: String,
    /// Name of the model's file or folder under `files`.
    pub(crate) entry: String,
    /// Name of the schema under `files`.
    pub(crate) schema: Option<String>,
    /// Bytes of the model, without the schema.
    pub(crate) size: ByteSize,
    pub(crate) fetched: UnixMillis,
    /// The content's own digest, where all of its files have one.
    pub(crate) digest: Option<Digest>,
    /// What it was held against.
    pub(crate) checked: String,
    /// True when the files are the blobs themselves, not links to them: this file system cannot link.
    pub(crate) owned: bool,
    pub(crate) files: Vec<FileRecord>,
}

/// One file of a content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Relative to `files`.
    pub(crate) path: String,
    pub(crate) bytes: ByteSize,
    pub(crate) version: Option<String>,
    pub(crate) blob: BlobId,
}

/// Thirty-two bytes, in JSON as hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Digest(pub(crate) [u8; 32]);

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        hex(&digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = unhex(&text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Digest).ok_or_else(|| format!("{text:?} is no digest"))
    }
}

impl Manifest {
    /// The manifest of a plan whose blobs are whole; `files` with what is known of each.
    pub(crate) fn new(model: &ModelId, plan: &crate::Plan, files: &[(BlobId, Record)], owned: bool, fetched: UnixMillis) -> Self {
        let record = |(wanted, (blob, _)): (&crate::Wanted, &(BlobId, Record))| FileRecord {
            path: wanted.path.clone(),
            bytes: wanted.bytes,
            version: wanted.version.clone(),
            blob: *blob,
        };
        Manifest {
            format: FORMAT,
            model: model.clone(),
            source: plan.source.clone(),
            entry: plan.entry.clone(),
            schema: plan.schema.clone(),
            size: plan.size,
            fetched,
            digest: {
                let each = plan.files.iter().zip(files).map(|(wanted, (_, record))| Some((wanted.path.as_str(), record.digest.as_ref()?)));
                each.collect::<Option<Vec<_>>>().map(|files| Digest(digest(files.into_iter())))
            },
            // Of an empty file there is nothing to hold against anything.
            checked: checked(files.iter().filter(|(_, record)| record.bytes.0 > 0).map(|(_, record)| record.checked.as_str())),
            owned,
            files: plan.files.iter().zip(files).map(record).collect(),
        }
    }

    /// The blobs, each once.
    pub(crate) fn blobs(&self) -> Vec<BlobId> {
        let mut blobs: Vec<BlobId> = self.files.iter().map(|file| file.blob).collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }

    /// Bytes of all files.
    pub(crate) fn total(&self) -> ByteSize {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// The digest of a set of files: of their paths, in order, each with the digest of its bytes.
fn digest<'a>(files: impl Iterator<Item = (&'a str, &'a [u8; 32])>) -> [u8; 32] {
    let mut files: Vec<_> = files.collect();
    files.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for (path, digest) in files {
        // The length keeps a path from running into the digest.
        hasher.update(&(path.len() as u64).to_le_bytes()).update(path.as_bytes()).update(digest);
    }
    *hasher.finalize().as_bytes()
}

/// What a set of files was held against, in one line.
fn checked<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let (mut counts, mut all) = (std::collections::BTreeMap::<&str, usize>::new(), 0usize);
    for word in words {
        all += 1;
        *counts.entry(word).or_default() += 1;
    }
    let unverified = counts.remove(UNVERIFIED).is_some();
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    match (counts.as_slice(), unverified) {
        ([], _) => "lengths, content unverified".to_owned(),
        ([(word, _)], false) => (*word).to_owned(),
        (counts, unverified) => {
            let counts: Vec<String> = counts.iter().map(|(word, count)| format!("{word} of {count}")).collect();
            let rest = if unverified { ", content of the others unverified" } else { "" };
            format!("{} of {all} objects{rest}", counts.join(" and "))
        }
    }
}

/// One model's folder in the tier.
#[derive(Debug)]
pub struct Content {
    folder: PathBuf,
    manifest: Manifest,
}

impl Content {
    pub(crate) fn new(folder: PathBuf, manifest: Manifest) -> Self {
        Content { folder, manifest }
    }

    /// Reads the content of a folder, whatever state its files are in.
    pub(crate) fn read(folder: &Path) -> Result<(Content, UnixMillis), String> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read(&path).map_err(|fault| format!("{}: {fault}", path.display()))?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|fault| format!("{}: {fault}", path.display()))?;
        if manifest.format != FORMAT {
            return Err(format!("{} has format {}, this program writes {FORMAT}", path.display(), manifest.format));
        }
        if !folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| is_of(name, &manifest.model)) {
            return Err(format!("{} is of model {}", path.display(), manifest.model));
        }
        let last_use = std::fs::metadata(&path).and_then(|about| about.modified()).map_err(|fault| fault.to_string())?;
        let last_use = last_use.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Ok((Content { folder: folder.to_owned(), manifest }, UnixMillis(u64::try_from(last_use).unwrap_or(u64::MAX))))
    }

    /// The model: a file, or a folder that holds its files.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.files().join(&self.manifest.entry)
    }

    /// The schema, where the plan named one.
    #[must_use]
    pub fn schema(&self) -> Option<PathBuf> {
        self.manifest.schema.as_ref().map(|name| self.files().join(name))
    }

    /// Bytes of the model, without the schema.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        self.manifest.size
    }

    /// Files, the schema included.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.manifest.files.len()
    }

    /// The content's own digest: of its files' paths, in order, each with the [`crate::digest()`] of its bytes. The same
    /// wherever and however the same files were fetched.
    #[must_use]
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.manifest.digest.as_ref().map(|digest| digest.0)
    }

    /// What its bytes were held against when they were fetched, in one line for users.
    #[must_use]
    pub fn checked(&self) -> String {
        self.manifest.checked.clone()
    }

    /// The same content in another folder.
    pub(crate) fn moved_to(self, folder: PathBuf) -> Self {
        Content { folder, ..self }
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// Every file is there with its length. `seen` gets each file that is, with what the file system says of it.
    pub(crate) fn check(&self, mut seen: impl FnMut(&FileRecord, &Path, &std::fs::Metadata)) -> Result<(), String> {
        let files = self.files();
        for file in &self.manifest.files {
            let path = files.join(&file.path);
            match std::fs::symlink_metadata(&path) {
                Ok(about) if about.is_file() && about.len() == file.bytes.0 => seen(file, &path, &about),
                Ok(about) => return Err(format!("{} has {} bytes, not {}", path.display(), about.len(), file.bytes.0)),
                Err(fault) => return Err(format!("{}: {fault}", path.display())),
            }
        }
        Ok(())
    }

    /// Remembers the last use across restarts. Failing to is no fault: the content only goes a little sooner.
    pub(crate) fn touch(&self, now: UnixMillis) {
        if let Ok(manifest) = File::open(self.folder.join(MANIFEST)) {
            let _ = manifest.set_modified(UNIX_EPOCH + Duration::from_millis(now.0));
        }
    }
}

/// When a file was last written, in nanoseconds since the epoch.
pub(crate) fn written_at(about: &std::fs::Metadata) -> i64 {
    about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec())
}

/// A model id as a file name: readable, reversible by eye, at most 200 bytes, different for different ids.
pub(crate) fn folder_name(model: &ModelId) -> String {
    use std::fmt::Write as _;
    let mut name = String::new();
    for byte in model.as_str().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if !name.is_empty() => name.push('.'),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(name, "%{byte:02X}");
            }
        }
    }
    if name.len() > 200 {
        name.truncate(160);
        name.push('~');
        name.push_str(&blake3::hash(model.as_str().as_bytes()).to_hex()[..32]);
    }
    name
}

/// The `n`th name for a folder of `model`; the first is the usual one, the others are for while that is taken.
pub(crate) fn nth_name(model: &ModelId, n: u64) -> String {
    let name = folder_name(model);
    if n == 0 { name } else { format!("{name}~{n}") }
}

fn is_of(name: &str, model: &ModelId) -> bool {
    let Some(rest) = name.strip_prefix(&folder_name(model)) else { return false };
    // At most twenty digits: an id's name cut short goes on with thirty-two.
    rest.is_empty() || rest.strip_prefix('~').is_some_and(|n| n.len() <= 20 && n.parse::<u64>().is_ok_and(|n| n > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ModelId {
        ModelId::new(name).expect("sound")
    }

    #[test]
    fn folder_names_are_safe_and_different() {
        let long_a = format!("{}a", "é".repeat(300));
        let long_b = format!("{}b", "é".repeat(300));
        let ids = ["m__isvc-0123456789", ".", "..", ".hidden", "a/b", "a%2Fb", "a b", "ä", long_a.as_str(), long_b.as_str()];
        let names: std::collections::HashSet<String> = ids.iter().flat_map(|name| (0..3).map(|n| nth_name(&id(name), n))).collect();
        assert_eq!(names.len(), 3 * ids.len());
        for name in &names {
            assert!(name.len() <= 202 && name.is_ascii() && !name.contains('/') && !name.starts_with('.'), "{name}");
            assert_eq!(ids.iter().filter(|model| is_of(name, &id(model))).count(), 1, "{name}");
        }
        assert_eq!(folder_name(&id("m__isvc-0123456789")), "m__isvc-0123456789");
        for other in ["m~", "m~0", "m~x", "m~1~2", "m~-1", "mm", ""] {
            assert!(!is_of(other, &id("m")), "{other}");
        }
    }

    #[test]
    fn what_was_checked_is_said_in_one_line() {
        for (words, line) in [
            (vec![], "lengths, content unverified"),
            (vec![UNVERIFIED, UNVERIFIED], "lengths, content unverified"),
            (vec!["crc32c", "crc32c"], "crc32c"),
            (vec!["md5", UNVERIFIED, "md5", "md5", UNVERIFIED], "md5 of 3 of 5 objects, content of the others unverified"),
            (vec!["md5", "crc32c", "crc32c"], "crc32c of 2 and md5 of 1 of 3 objects"),
            (vec!["md5", "crc32c", "crc32c", UNVERIFIED], "crc32c of 2 and md5 of 1 of 4 objects, content of the others unverified"),
        ] {
            assert_eq!(checked(words.iter().copied()), line);
        }
    }

    #[test]
    fn the_digest_is_of_paths_and_bytes_in_any_order() {
        let (x, y) = ([1; 32], [2; 32]);
        let of = |files: &[(&'static str, &[u8; 32])]| digest(files.iter().copied());
        let there = of(&[("a", &x), ("b", &y)]);
        assert_eq!(there, of(&[("b", &y), ("a", &x)]));
        for other in [of(&[("a", &y), ("b", &x)]), of(&[("a", &x), ("c", &y)]), of(&[("a", &x)]), of(&[("a", &x), ("b", &y), ("c", &y)])] {
            assert_ne!(other, there);
        }
    }
}
