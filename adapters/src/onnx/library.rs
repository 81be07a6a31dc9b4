//! Where ONNX Runtime's shared library is looked for.

use std::env;
use std::path::{Path, PathBuf};

/// The environment variable that names the library, as ONNX Runtime's other users have it.
pub(super) const VARIABLE: &str = "ORT_DYLIB_PATH";

/// A place where the library may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    /// Somebody named it: that it cannot be opened is an error, not a reason to go on.
    pub(super) demanded: bool,
    /// Who named it or how it was found, for messages.
    pub(super) source: &'static str,
}

/// The places in order: the one that is configured; the one in `ORT_DYLIB_PATH`; `lib/` beside the executable; the
/// usual system folders; whatever the dynamic linker finds. Where one is named, only that one.
pub(super) fn candidates(configured: Option<&Path>) -> Vec<Candidate> {
    let beside = env::current_exe().ok().and_then(|executable| Some(executable.parent()?.join("lib")));
    list(configured, env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from), beside, Path::is_file)
}

fn list(configured: Option<&Path>, variable: Option<PathBuf>, beside: Option<PathBuf>, exists: impl Fn(&Path) -> bool) -> Vec<Candidate> {
    if let Some(path) = configured {
        return vec![Candidate { path: path.to_owned(), demanded: true, source: "--onnx-library" }];
    }
    if let Some(path) = variable {
        return vec![Candidate { path, demanded: true, source: VARIABLE }];
    }
    let machine = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    let folders = beside.into_iter().chain([machine, "/usr/local/lib".into(), "/usr/lib64".into(), "/usr/lib".into()].map(PathBuf::from));
    let files = folders.flat_map(|folder| ["libonnxruntime.so", "libonnxruntime.so.1"].map(|name| folder.join(name)));
    let mut found: Vec<Candidate> = files.filter(|file| exists(file)).map(|path| Candidate { path, demanded: false, source: "found" }).collect();
    found.push(Candidate { path: PathBuf::from("libonnxruntime.so"), demanded: false, source: "dynamic linker" });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_named_is_the_only_candidate() {
        let variable = || Some(PathBuf::from("/v.so"));
        for (configured, variable, path, source) in
            [(Some("/c.so"), variable(), "/c.so", "--onnx-library"), (None, variable(), "/v.so", "ORT_DYLIB_PATH")]
        {
            let found = list(configured.map(Path::new), variable, None, |_| true);
            assert_eq!(found, [Candidate { path: path.into(), demanded: true, source }]);
        }
    }

    #[test]
    fn the_folder_beside_the_executable_comes_before_the_systems_and_the_linker_last() {
        let there = ["/opt/berth/lib/libonnxruntime.so.1", "/usr/lib/libonnxruntime.so"];
        let found = list(None, None, Some("/opt/berth/lib".into()), |path| there.iter().any(|other| path == Path::new(other)));
        let paths: Vec<&str> = found.iter().map(|candidate| candidate.path.to_str().expect("text")).collect();
        assert_eq!(paths, [there[0], there[1], "libonnxruntime.so"]);
        assert!(found.iter().all(|candidate| !candidate.demanded));
    }
}
