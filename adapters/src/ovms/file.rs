//! The server's configuration file: whole at every moment, since the server may read it at any.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::layout::ovms;

/// Models by the server's names for them, with their folders.
pub(super) type Models = BTreeMap<String, PathBuf>;

/// Writes the file beside its place and puts it there by rename.
///
/// # Errors
/// The disk's words.
pub(super) async fn write(file: &Path, models: &Models) -> Result<(), String> {
    let (path, text) = (file.to_owned(), ovms::config(models));
    let written = tokio::task::spawn_blocking(move || put(&path, &text)).await;
    let fault = match written {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(fault)) => fault.to_string(),
        Err(panic) => panic.to_string(),
    };
    Err(format!("configuration {} cannot be written: {fault}", file.display()))
}

fn put(file: &Path, text: &str) -> io::Result<()> {
    let name = file.file_name().ok_or_else(|| io::Error::other("it has no name"))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(".new");
    let beside = folder.join(beside);
    fs::write(&beside, text)?;
    // The server may be another user, whatever this process' umask is.
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
    fs::rename(beside, file)
}

/// Makes the file ours: with no models in it. From then on nothing of an earlier process is loaded.
///
/// # Errors
/// The disk's words, or a model in it that is not ours: then nothing was changed.
pub(super) async fn claim(file: &Path, root: &Path) -> Result<(), String> {
    let (path, root) = (file.to_owned(), root.to_owned());
    let foreign = tokio::task::spawn_blocking(move || foreign(&path, &root)).await.map_err(|panic| panic.to_string())?;
    if let Some(name) = foreign? {
        return Err(format!("it lists {name}, which Berth did not put there, and would be emptied: name a file of its own"));
    }
    write(file, &Models::new()).await
}

/// A model in the file whose folder is not below `root`.
fn foreign(file: &Path, root: &Path) -> Result<Option<String>, String> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault.to_string()),
    };
    // What is no JSON is what a writer left half-way, and no server loads anything from it.
    let Ok(whole) = serde_json::from_slice::<serde_json::Value>(&text) else { return Ok(None) };
    let ours = whole.as_object().is_some_and(|sections| sections.keys().all(|section| section == "model_config_list"));
    let models = ovms::models(&text)
        .ok()
        .filter(|_| ours)
        .ok_or("it has settings that Berth did not put there, and would be emptied: name a file of its own")?;
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(models.into_iter().find(|(_, folder)| !absolute(folder).starts_with(absolute(root))).map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_is_replaced_whole_and_emptied_only_where_it_is_ours() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, root) = (folder.path().join("below/config.json"), folder.path().join("models"));
        let models: Models = [("m".to_owned(), root.join("m"))].into();
        write(&file, &models).await.expect("written");
        let first = fs::File::open(&file).expect("there");
        write(&file, &Models::new()).await.expect("written");
        assert_eq!(ovms::models(io::read_to_string(first).expect("read").as_bytes()), Ok(models.clone()), "who had it open reads the older one");
        assert_eq!(fs::read_dir(folder.path().join("below")).expect("there").count(), 1, "nothing is left beside it");

        write(&file, &models).await.expect("written");
        claim(&file, &root).await.expect("ours");
        assert_eq!(ovms::models(&fs::read(&file).expect("there")), Ok(Models::new()));
        write(&file, &models).await.expect("written");
        let refused = claim(&file, &folder.path().join("other")).await.expect_err("another's");
        assert!(refused.starts_with("it lists m, "), "{refused}");
        assert_eq!(ovms::models(&fs::read(&file).expect("there")), Ok(models));
        fs::write(&file, "{\"model_config").expect("written");
        claim(&file, &root).await.expect("half a file lists nothing");
        for foreign in [r#"{"mediapipe_config_list":[]}"#, r#"{"model_config_list":[],"monitoring":{}}"#, r#"{"model_config_list":[{"config":{}}]}"#]
        {
            fs::write(&file, foreign).expect("written");
            let refused = claim(&file, &root).await.expect_err("another's");
            assert!(refused.contains("name a file of its own"), "{foreign}: {refused}");
            assert_eq!(fs::read_to_string(&file).expect("there"), foreign);
        }
    }
}
