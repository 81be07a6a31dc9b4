//! What lies where below a model's own folder, and how that comes about.
//!
//! Everything is a link or a small text: nothing is copied. Folders are real ones down to the files, so that what a server
//! writes beside a model's files (Python its `__pycache__`) is part of the layout and goes with it. A link is relative where
//! the model's files and the server's folder lie under one mount, so that it holds for a server that has the same volume at
//! another place; through different mounts, or where they have nothing but `/` in common, it is absolute, because only equal
//! paths can be meant then.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use tracing::warn;

use super::listing::Node;
use crate::{LaidOut, LoadError, LoadFault};

/// In the server's folder: what is being made or taken away, and who has parts. No name of a model starts with a dot.
const OURS: &str = ".berth";

/// One file, folder or link of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A link to this path.
    Link(PathBuf),
    /// What is seen is the folder at this path, which holds this: folders like its own, and in them a link for each file.
    Tree(PathBuf, Node),
    /// A file with this content.
    Text(Vec<u8>),
    /// An empty folder.
    Folder,
}

impl Entry {
    /// What makes a server see `node`, which is at `target`.
    pub(crate) fn of(target: PathBuf, node: &Node) -> Self {
        match node {
            Node::File { .. } => Entry::Link(target),
            Node::Folder { .. } => Entry::Tree(target, node.clone()),
        }
    }
}

/// What lies where in one folder of the server; parts of a path are joined by `/`. A lone entry with an empty path is the
/// folder's stead itself.
pub(crate) type Entries = BTreeMap<String, Entry>;

/// How a model is laid out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What the server calls the model; its folder's name.
    pub(crate) name: String,
    /// What lies in its folder.
    pub(crate) entries: Entries,
    /// Further models that it consists of, by the server's names, each with a folder of its own. They come and go with it.
    pub(crate) parts: BTreeMap<String, Entries>,
    /// For Triton: the whole configuration as JSON, to be given with the load in place of a file.
    pub(crate) config: Option<String>,
    /// What its owner may want to know: what was left out and why.
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// A plan with nothing in it yet.
    pub(crate) fn named(name: String) -> Self {
        Plan { name, ..Plan::default() }
    }

    /// Makes it so below `root`: built beside, then put in the place of an older layout of the model. Doing it again changes
    /// nothing. After a failure the older layout is there or none.
    ///
    /// # Errors
    /// Nothing was attempted: the disk's words, or which path would leave the model's folder.
    pub(crate) fn carry_out(&self, root: &Path) -> Result<LaidOut, LoadError> {
        self.check()?;
        let made = self.make(root).map_err(|fault| failed(&format!("layout of {} below {}", self.name, root.display()), &fault))?;
        Ok(LaidOut { path: made })
    }

    /// Every folder that it makes: the parts', then the model's own, so that the model appears when it is whole.
    fn folders(&self) -> impl Iterator<Item = (&String, &Entries)> {
        self.parts.iter().chain([(&self.name, &self.entries)])
    }

    /// No path leaves its folder or leads through another entry.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let refuse = |name: &str, what: &str| Err(LoadError::bad_model(format!("layout of {name}: {what}")));
        for (name, entries) in self.folders() {
            if name.starts_with('.') || !is_plain(name) || name.contains('/') {
                return refuse(name, "not a name that a folder can have");
            }
            for path in entries.keys() {
                if path.is_empty() && entries.len() == 1 {
                    continue;
                }
                if !is_plain(path) {
                    return refuse(name, &format!("{path:?} would not be in its folder"));
                }
                let mut above = path.as_str();
                while let Some((folder, _)) = above.rsplit_once('/') {
                    if entries.get(folder).is_some_and(|entry| *entry != Entry::Folder) {
                        return refuse(name, &format!("{path:?} lies under {folder:?}, which is no folder"));
                    }
                    above = folder;
                }
            }
        }
        Ok(())
    }

    fn make(&self, root: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(root.join(OURS))?;
        let real = fs::canonicalize(root)?;
        let new = real.join(OURS).join("new");
        fs::create_dir_all(&new)?;
        let built = self.folders().try_for_each(|(name, entries)| build(&new.join(name), &real.join(name), entries));
        if let Err(fault) = built {
            self.folders().for_each(|(name, _)| drop(remove(&new.join(name))));
            return Err(fault);
        }
        take_away(&real, &self.name)?;
        if !self.parts.is_empty() {
            // Before the first part is in place, so that whatever happens next they are found again.
            let list = list_of_parts(&real, &self.name);
            fs::create_dir_all(list.parent().unwrap_or(&real))?;
            fs::write(list, self.parts.keys().cloned().collect::<Vec<_>>().join("\n"))?;
        }
        for (name, _) in self.folders() {
            put_away(&real, name)?;
            fs::rename(new.join(name), real.join(name))?;
        }
        Ok(root.join(&self.name))
    }
}

/// Takes away the layout of the model that the server calls `name`, with its parts. What is not there is no fault.
///
/// # Errors
/// The disk's words.
pub(crate) fn clear(root: &Path, name: &str) -> Result<(), LoadError> {
    let gone = match fs::canonicalize(root) {
        Ok(real) => take_away(&real, name),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(fault) => Err(fault),
    };
    gone.map_err(|fault| failed(&format!("layout of {name} below {} cannot be removed", root.display()), &fault))
}

/// Takes away every layout below `root`, whoever made it: what an earlier process left. The root itself stays.
///
/// # Errors
/// The disk's words.
pub(crate) fn purge(root: &Path) -> Result<(), LoadError> {
    purge_by(root, &remove).map_err(|fault| failed(&format!("layouts below {} cannot be removed", root.display()), &fault))
}

fn purge_by(root: &Path, remove: &Remove<'_>) -> io::Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(fault) => return Err(fault),
    };
    for name in entries.iter().filter(|name| *name != OURS) {
        put_away_by(root, Path::new(name), remove)?;
    }
    let ours = root.join(OURS);
    let old = ours.join("old");
    for left in fs::read_dir(&old).into_iter().flatten() {
        drop(remove(&left?.path()));
    }
    remove(&ours.join("new"))?;
    remove(&ours.join("parts"))?;
    // What is aside and cannot be removed keeps them.
    drop(fs::remove_dir(old));
    drop(fs::remove_dir(ours));
    Ok(())
}

/// Makes the server's folder ours: made, or emptied of what an earlier process left there. From then on it is known as ours.
///
/// # Errors
/// The disk's words, or what is there that is not ours: then nothing was removed.
pub(crate) fn claim(root: &Path) -> Result<(), String> {
    let told = |fault: io::Error| fault.to_string();
    fs::create_dir_all(root).map_err(told)?;
    let first = fs::read_dir(root).and_then(|mut entries| entries.next().transpose()).map_err(told)?;
    if let Some(foreign) = first.filter(|_| !root.join(OURS).exists()) {
        let name = foreign.file_name();
        return Err(format!("it holds {}, which Berth did not put there, and would be emptied: name an empty folder", name.display()));
    }
    purge(root).map_err(|fault| fault.message)?;
    fs::create_dir_all(root.join(OURS)).map_err(told)
}

/// The disk's fault, not the model's: waiting may help.
fn failed(what: &str, fault: &io::Error) -> LoadError {
    LoadError { fault: LoadFault::RuntimeDown, message: format!("{what}: {fault}"), nothing_attempted: true }
}

/// Whether a path goes down only.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| matches!(Path::new(part).components().next(), Some(Component::Normal(own)) if own == part))
}

fn list_of_parts(root: &Path, name: &str) -> PathBuf {
    root.join(OURS).join("parts").join(name)
}

fn take_away(root: &Path, name: &str) -> io::Result<()> {
    let list = list_of_parts(root, name);
    match fs::read_to_string(&list) {
        Ok(parts) => {
            for part in parts.lines().filter(|part| is_plain(part) && !part.contains('/') && !part.starts_with('.')) {
                put_away(root, part)?;
            }
            put_away(root, name)?;
            fs::remove_file(list)
        }
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => put_away(root, name),
        Err(fault) => Err(fault),
    }
}

/// Out of the server's sight by one rename, then removed: a server that looks meanwhile sees all of a layout or none.
fn put_away(root: &Path, name: &str) -> io::Result<()> {
    put_away_by(root, Path::new(name), &remove)
}

/// Takes away what is at a path.
type Remove<'r> = dyn Fn(&Path) -> io::Result<()> + 'r;

/// So many layouts of one name may lie aside that cannot be removed.
const MOST_ASIDE: u32 = 1000;

/// A server that runs as somebody else may have put files into it that only that one can remove: they stay aside, and are tried
/// again with the next layout of that name.
fn put_away_by(root: &Path, name: &Path, remove: &Remove<'_>) -> io::Result<()> {
    let (from, old) = (root.join(name), root.join(OURS).join("old"));
    let is_there = !fs::symlink_metadata(&from).is_err_and(|fault| fault.kind() == io::ErrorKind::NotFound);
    if !is_there && !old.exists() {
        return Ok(());
    }
    fs::create_dir_all(&old)?;
    let mut place = old.join(name);
    for number in 1.. {
        match remove(&place) {
            Ok(()) => break,
            Err(fault) if number > MOST_ASIDE => return Err(fault),
            Err(_it_stays) => {
                let mut next = old.join(name).into_os_string();
                next.push(format!("~{number}"));
                place = next.into();
            }
        }
    }
    if !is_there {
        return Ok(());
    }
    fs::rename(from, &place)?;
    if let Err(fault) = remove(&place) {
        warn!(path = %place.display(), error = %fault, "what a server has left in the layout of a model cannot be removed: it stays aside");
    }
    Ok(())
}

/// Removes whatever is at a path; a link itself, never what it leads to.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Builds at `new` what will lie at `at`.
fn build(new: &Path, at: &Path, entries: &Entries) -> io::Result<()> {
    remove(new)?;
    if !entries.contains_key("") {
        fs::create_dir(new)?;
    }
    for (path, entry) in entries {
        let (made, place) = if path.is_empty() { (new.to_owned(), at.to_owned()) } else { (new.join(path), at.join(path)) };
        if let (Some(folder), false) = (made.parent(), path.is_empty()) {
            fs::create_dir_all(folder)?;
        }
        match entry {
            Entry::Folder => fs::create_dir_all(&made)?,
            Entry::Text(text) => fs::write(&made, text)?,
            Entry::Link(target) => symlink(link_text(&place, target), &made)?,
            Entry::Tree(target, node) => grow(&made, &link_text(&place, target), node)?,
        }
    }
    Ok(())
}

/// Makes at `new` what looks like `node`, to which a link there would say `text`.
fn grow(new: &Path, text: &Path, node: &Node) -> io::Result<()> {
    let Some(entries) = node.entries().filter(|entries| !must_stay_together(entries)) else { return symlink(text, new) };
    fs::create_dir(new)?;
    // One folder further down.
    let text = if text.is_relative() { Path::new("..").join(text) } else { text.to_owned() };
    entries.iter().try_for_each(|(name, inner)| grow(&new.join(name), &text.join(name), inner))
}

/// Whether files of a folder must not be links: some ONNX Runtimes refuse weights beside a model that are one (microsoft/onnxruntime
/// issue 27353, seen with 1.24.1; 1.31.1 takes them where the model is one, too).
/// A server does not write there, unless Python does beside its sources.
fn must_stay_together(entries: &BTreeMap<String, Node>) -> bool {
    fn has(entries: &BTreeMap<String, Node>, ending: &str) -> bool {
        entries.iter().any(|(name, node)| match node {
            Node::File { .. } => name.ends_with(ending),
            Node::Folder { entries, .. } => has(entries, ending),
        })
    }
    let has_model = entries.iter().any(|(name, node)| !node.is_folder() && name.ends_with(".onnx"));
    has_model && entries.len() > 1 && !has(entries, ".py")
}

/// What a link at `place` says to lead to `target`; both without links on the way.
fn link_text(place: &Path, target: &Path) -> PathBuf {
    let folder = place.parent().unwrap_or(place);
    let shared: PathBuf = folder.components().zip(target.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    // The folder that the link will lie in may not be there yet: its mount is that of the nearest one above that is.
    let device = |path: &Path| path.ancestors().find_map(|path| fs::metadata(path).ok()).map(|about| about.dev());
    let one_mount = shared.parent().is_some() && device(&shared) == device(folder) && device(&shared) == device(target);
    if !one_mount {
        return target.to_owned();
    }
    let up = folder.components().count() - shared.components().count();
    let mut text: PathBuf = std::iter::repeat_n("..", up).collect();
    text.extend(target.components().skip(shared.components().count()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            fs::create_dir_all(folder.path().join("files/m/sub")).expect("a folder");
            fs::write(folder.path().join("files/m/a"), "a").expect("a file");
            fs::write(folder.path().join("files/m/sub/b"), "b").expect("a file");
            Place { folder }
        }

        fn root(&self) -> PathBuf {
            self.folder.path().join("server")
        }

        fn source(&self, path: &str) -> Entry {
            Entry::Link(self.folder.path().canonicalize().expect("there").join("files/m").join(path))
        }

        /// A folder of the model as it is now.
        fn tree(&self, path: &str) -> Entry {
            let (folder, listing) = super::super::listing::read(&self.folder.path().join("files/m").join(path), "x").expect("sound");
            Entry::of(folder, &listing.0)
        }

        fn put(&self, path: &str) {
            let file = self.folder.path().join(path);
            fs::create_dir_all(file.parent().expect("a parent")).expect("a folder");
            fs::write(file, path).expect("a file");
        }

        fn plan(&self, name: &str, entries: &[(&str, Entry)]) -> Plan {
            let entries = entries.iter().map(|(path, entry)| ((*path).to_owned(), entry.clone())).collect();
            Plan { entries, ..Plan::named(name.to_owned()) }
        }

        /// Every path below the server's folder, ours left out; a link with where it leads.
        fn seen(&self) -> Vec<String> {
            self.below("server")
        }

        fn below(&self, folder: &str) -> Vec<String> {
            fn walk(folder: &Path, shown: &str, out: &mut Vec<String>) {
                let mut entries: Vec<_> = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")).collect();
                entries.sort_by_key(std::fs::DirEntry::file_name);
                for entry in entries {
                    let name = entry.file_name().into_string().expect("UTF-8");
                    let kind = entry.file_type().expect("a kind");
                    if shown.is_empty() && name == OURS {
                        for stage in ["new", "old"] {
                            let left = fs::read_dir(entry.path().join(stage)).map_or(0, Iterator::count);
                            assert_eq!(left, 0, "something is left in {stage}");
                        }
                    } else if kind.is_symlink() {
                        out.push(format!("{shown}{name} -> {}", fs::read_link(entry.path()).expect("a link").display()));
                    } else if kind.is_dir() {
                        out.push(format!("{shown}{name}/"));
                        walk(&entry.path(), &format!("{shown}{name}/"), out);
                    } else {
                        out.push(format!("{shown}{name}"));
                    }
                }
            }
            let mut out = Vec::new();
            walk(&self.folder.path().join(folder), "", &mut out);
            out
        }
    }

    #[test]
    fn a_plan_comes_about_with_links_that_hold_wherever_the_volume_is_mounted() {
        let place = Place::new();
        let text = Entry::Text(b"hello".to_vec());
        let plan = place.plan("m", &[("1/model.x", place.source("a")), ("2", place.source("sub")), ("config", text), ("3", Entry::Folder)]);
        let laid_out = plan.carry_out(&place.root()).expect("done");
        assert_eq!(laid_out.path, place.root().join("m"));
        assert_eq!(place.seen(), ["m/", "m/1/", "m/1/model.x -> ../../../files/m/a", "m/2 -> ../../files/m/sub", "m/3/", "m/config"]);
        assert_eq!(fs::read(laid_out.path.join("2/b")).expect("a file"), b"b");
        // The whole volume at another place.
        let moved = tempfile::tempdir().expect("a folder");
        fs::rename(place.folder.path().join("server"), moved.path().join("server")).expect("moved");
        fs::rename(place.folder.path().join("files"), moved.path().join("files")).expect("moved");
        assert_eq!(fs::read(moved.path().join("server/m/1/model.x")).expect("a file"), b"a");
    }

    #[test]
    fn links_across_mounts_are_absolute() {
        let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
        let place = Place::new();
        let target = elsewhere.path().join("w");
        fs::write(&target, "w").expect("a file");
        let (here, there) = (fs::metadata(place.folder.path()).expect("there").dev(), fs::metadata(&target).expect("there").dev());
        place.plan("m", &[("w", Entry::Link(target.clone()))]).carry_out(&place.root()).expect("done");
        let (folder, listing) = super::super::listing::read(elsewhere.path(), "x").expect("sound");
        place.plan("tree", &[("1", Entry::of(folder, &listing.0))]).carry_out(&place.root()).expect("done");
        if here != there {
            let expected = ["m/", &format!("m/w -> {}", target.display()), "tree/", "tree/1/", &format!("tree/1/w -> {}", target.display())];
            assert_eq!(place.seen(), expected);
        }
        for laid in ["m/w", "tree/1/w"] {
            assert_eq!(fs::read(place.root().join(laid)).expect("a file"), b"w");
        }
    }

    #[test]
    fn what_a_server_writes_into_a_models_folders_is_not_among_the_models_files() {
        let place = Place::new();
        place.put("files/m/sub/deep/c");
        symlink("sub/deep", place.folder.path().join("files/m/linked")).expect("a link");
        let before = place.below("files");
        let plan = place.plan("m", &[("1", place.tree(""))]);
        let expected = [
            "m/",
            "m/1/",
            "m/1/a -> ../../../files/m/a",
            "m/1/linked/",
            "m/1/linked/c -> ../../../../files/m/linked/c",
            "m/1/sub/",
            "m/1/sub/b -> ../../../../files/m/sub/b",
            "m/1/sub/deep/",
            "m/1/sub/deep/c -> ../../../../../files/m/sub/deep/c",
        ];
        for _ in 0..2 {
            plan.carry_out(&place.root()).expect("done");
            assert_eq!(place.seen(), expected, "nothing of what was written before");
            assert_eq!(fs::read(place.root().join("m/1/linked/c")).expect("a file"), b"files/m/sub/deep/c");
            for written in ["1/__pycache__/model.pyc", "1/sub/deep/more", "1/linked/x", "2/y"] {
                place.put(&format!("server/m/{written}"));
            }
        }
        clear(&place.root(), "m").expect("done");
        assert_eq!((place.below("files"), place.seen().len()), (before, 0));
    }

    #[test]
    fn the_stead_of_a_layout_may_be_a_tree_and_what_is_new_among_the_files_comes_with_the_next_one() {
        let place = Place::new();
        place.plan("m", &[("", place.tree(""))]).carry_out(&place.root()).expect("done");
        assert_eq!(place.seen(), ["m/", "m/a -> ../../files/m/a", "m/sub/", "m/sub/b -> ../../../files/m/sub/b"]);
        place.put("files/m/new");
        place.plan("m", &[("", place.tree(""))]).carry_out(&place.root()).expect("done");
        assert_eq!(place.seen()[2], "m/new -> ../../files/m/new");
    }

    #[test]
    fn weights_that_onnx_models_name_lie_in_one_folder_with_them_and_nothing_else_is_linked_whole() {
        for (case, files, linked) in [
            ("weights of its own", &["model.onnx", "model.onnx.data"][..], true),
            ("and deeper", &["model.onnx", "weights/w"], true),
            ("a model and nothing else", &["model.onnx"], false),
            ("a source of Python, which would write there", &["model.onnx", "w", "model.py"], false),
            ("which may be deeper", &["model.onnx", "w", "lib/util.py"], false),
            ("no model of this kind", &["model.pt", "w"], false),
        ] {
            let place = Place::new();
            for file in files {
                place.put(&format!("files/m/net/{file}"));
            }
            place.plan("m", &[("1", place.tree("net"))]).carry_out(&place.root()).expect("done");
            let whole = place.seen().contains(&"m/1 -> ../../files/m/net".to_owned());
            assert_eq!(whole, linked, "{case}: {:?}", place.seen());
            for file in files {
                assert!(place.root().join("m/1").join(file).is_file(), "{case}: {file}");
            }
        }
    }

    #[test]
    fn an_older_layout_is_replaced_whole_and_doing_it_again_changes_nothing() {
        let place = Place::new();
        place.plan("m", &[("old/x", place.source("a"))]).carry_out(&place.root()).expect("done");
        place.plan("other", &[("x", Entry::Folder)]).carry_out(&place.root()).expect("done");
        for _ in 0..2 {
            place.plan("m", &[("new", place.source("a"))]).carry_out(&place.root()).expect("done");
            assert_eq!(place.seen(), ["m/", "m/new -> ../../files/m/a", "other/", "other/x/"]);
        }
        assert_eq!(fs::read(place.folder.path().join("files/m/a")).expect("a file"), b"a");
    }

    #[test]
    fn a_lone_link_and_whatever_was_in_its_place_are_replaced_too() {
        let place = Place::new();
        place.plan("m.mar", &[("", place.source("a"))]).carry_out(&place.root()).expect("done");
        assert_eq!(place.seen(), ["m.mar -> ../files/m/a"]);
        place.plan("m.mar", &[("", place.source("sub"))]).carry_out(&place.root()).expect("done");
        place.plan("m.mar", &[("x", place.source("a"))]).carry_out(&place.root()).expect("done");
        assert_eq!(place.seen(), ["m.mar/", "m.mar/x -> ../../files/m/a"]);
        assert_eq!(fs::read(place.folder.path().join("files/m/sub/b")).expect("a file"), b"b");
    }

    #[test]
    fn clearing_takes_the_model_with_its_parts_and_nothing_else() {
        let place = Place::new();
        let mut plan = place.plan("m", &[("config", Entry::Folder)]);
        plan.parts.insert("m~.pre".into(), place.plan("", &[("1", place.source("sub"))]).entries);
        plan.parts.insert("m~.post".into(), place.plan("", &[("1", place.source("sub"))]).entries);
        plan.carry_out(&place.root()).expect("done");
        place.plan("m2", &[("x", place.source("a"))]).carry_out(&place.root()).expect("done");
        plan.parts.remove("m~.post");
        plan.carry_out(&place.root()).expect("done");
        assert_eq!(place.seen(), ["m/", "m/config/", "m2/", "m2/x -> ../../files/m/a", "m~.pre/", "m~.pre/1 -> ../../files/m/sub"]);
        for _ in 0..2 {
            clear(&place.root(), "m").expect("done");
            assert_eq!(place.seen(), ["m2/", "m2/x -> ../../files/m/a"]);
        }
        assert!(place.folder.path().join("files/m/sub/b").exists());
        clear(Path::new("/nowhere/at-all"), "m").expect("nothing to do");
    }

    #[test]
    fn what_only_the_server_can_remove_stays_aside_and_is_in_nobodys_way() {
        let place = Place::new();
        // As if Python had written it, as another user.
        let theirs = |path: &Path| match fs::read_dir(path).into_iter().flatten().flatten().any(|entry| entry.file_name() == "__pycache__") {
            true => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            false => remove(path),
        };
        let shown = || fs::read_dir(place.root()).expect("a folder").flatten().filter(|entry| entry.file_name() != OURS).count();
        for round in 1..4 {
            fs::create_dir_all(place.root().join("m/__pycache__")).expect("it writes");
            put_away_by(&place.root(), Path::new("m"), &theirs).expect("out of the way");
            let aside = fs::read_dir(place.root().join(OURS).join("old")).expect("a folder").count();
            assert_eq!((shown(), aside), (0, round));
        }
        fs::create_dir_all(place.root().join("m/__pycache__")).expect("it writes");
        purge_by(&place.root(), &theirs).expect("a new agent begins");
        assert_eq!(shown(), 0);
        claim(&place.root()).expect("it is known as ours");
        // Once they can be removed, they are.
        purge(&place.root()).expect("done");
        assert!(!place.root().join(OURS).exists());
    }

    #[test]
    fn a_folder_with_files_of_somebody_else_is_not_emptied_and_our_own_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let theirs = folder.path().join("resnet");
        fs::create_dir(&theirs).expect("a model of theirs");
        let fault = claim(folder.path()).expect_err("it is theirs");
        assert!(fault.contains("resnet") && theirs.is_dir(), "{fault}");
        fs::remove_dir(&theirs).expect("they made room");
        claim(folder.path()).expect("it is empty");
        fs::create_dir(&theirs).expect("a layout of ours");
        claim(folder.path()).expect("it is ours");
        assert!(!theirs.exists());
        claim(&folder.path().join("new/one")).expect("it is made");
    }

    #[test]
    fn a_purge_leaves_the_root_empty_and_the_models_files_alone() {
        let place = Place::new();
        let mut plan = place.plan("m", &[("1", place.source("sub"))]);
        plan.parts.insert("m~.pre".into(), place.plan("", &[("1", place.source("sub"))]).entries);
        plan.carry_out(&place.root()).expect("done");
        symlink("../files/m", place.root().join("strange")).expect("a link");
        fs::write(place.root().join("file"), "x").expect("a file");
        purge(&place.root()).expect("done");
        assert_eq!(fs::read_dir(place.root()).expect("there").count(), 0);
        assert!(place.folder.path().join("files/m/sub/b").exists());
        purge(Path::new("/nowhere/at-all")).expect("nothing to do");
    }

    #[test]
    fn a_link_in_the_models_place_is_removed_and_not_followed() {
        let place = Place::new();
        fs::create_dir_all(place.root()).expect("a folder");
        symlink("../files/m", place.root().join("m")).expect("a link");
        place.plan("m", &[("a", Entry::Text(b"new".to_vec()))]).carry_out(&place.root()).expect("done");
        assert_eq!(fs::read(place.folder.path().join("files/m/a")).expect("a file"), b"a");
        clear(&place.root(), "m").expect("done");
        symlink("../files/m", place.root().join("m")).expect("a link");
        clear(&place.root(), "m").expect("done");
        assert!(place.folder.path().join("files/m/sub/b").exists() && place.seen().is_empty());
    }

    #[test]
    fn a_path_that_leaves_the_models_folder_is_never_made() {
        let place = Place::new();
        let link = || place.source("sub");
        for (case, name, entries) in [
            ("up", "m", vec![("../x", Entry::Folder)]),
            ("up within", "m", vec![("a/../../x", Entry::Folder)]),
            ("absolute", "m", vec![("/tmp/x", Entry::Folder)]),
            ("empty part", "m", vec![("a//b", Entry::Folder)]),
            ("here", "m", vec![("./b", Entry::Folder)]),
            ("through a link", "m", vec![("1", link()), ("1/evil", Entry::Text(vec![]))]),
            ("through a link, deeper", "m", vec![("1", link()), ("1/a/evil", Entry::Text(vec![]))]),
            ("its stead and more", "m", vec![("", link()), ("x", Entry::Folder)]),
            ("a name above", "..", vec![("x", Entry::Folder)]),
            ("a name of ours", ".berth", vec![("x", Entry::Folder)]),
            ("a name with a slash", "a/b", vec![("x", Entry::Folder)]),
            ("no name", "", vec![("x", Entry::Folder)]),
        ] {
            let refused = place.plan(name, &entries).carry_out(&place.root()).expect_err(case);
            assert!(refused.nothing_attempted && refused.fault == LoadFault::BadModel, "{case}: {refused}");
            assert!(!place.root().exists(), "{case}");
        }
        assert!(!place.folder.path().join("files/m/sub/evil").exists());
    }

    #[test]
    fn a_layout_that_cannot_be_built_leaves_the_older_one() {
        let place = Place::new();
        place.plan("m", &[("x", place.source("a"))]).carry_out(&place.root()).expect("done");
        let long = "y".repeat(300);
        let refused = place.plan("m", &[(&long, place.source("a"))]).carry_out(&place.root()).expect_err("too long a name");
        assert!(refused.nothing_attempted && refused.fault == LoadFault::RuntimeDown, "{refused}");
        assert_eq!(place.seen(), ["m/", "m/x -> ../../files/m/a"]);
    }
}
