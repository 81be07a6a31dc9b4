//! The last view, on the agent's disk: it starts and serves while no controller can be reached.

use std::io::{self, Read as _, Write as _};
use std::path::Path;

use berth_proto::attendance::ViewPart;
use berth_registry::View;
use prost::Message as _;

use crate::LARGEST;
use crate::remembered::replace;
use crate::wire::{Building, Parts};

/// Writes a view as its parts, each behind its length.
pub(crate) fn write(path: &Path, view: &View) -> io::Result<()> {
    replace(path, |file| {
        let mut parts = Parts::of(view, None);
        while let Some(part) = parts.next().map_err(io::Error::other)? {
            let bytes = part.encode_to_vec();
            file.write_all(&u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes())?;
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// The view that was written there; `None` where there is no such file.
///
/// # Errors
/// The file cannot be read, or is not whole.
pub(crate) fn read(path: &Path) -> io::Result<Option<View>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let (mut file, mut building, nothing) = (io::BufReader::new(file), Building::default(), View::default());
    loop {
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
        if length > LARGEST {
            return Err(io::Error::other(format!("a part of {length} bytes: this is no view")));
        }
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        let part = ViewPart::decode(bytes.as_slice()).map_err(io::Error::other)?;
        if let Some(view) = building.take(part, &nothing).map_err(io::Error::other)? {
            return Ok(Some(view));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_registry::{NameEntry, Resolved};
    use berth_types::{ModelFormat, ModelId, Name, Placement, Registration, StorageRef};

    use super::*;

    fn registration(id: &str) -> Arc<Registration> {
        let storage = StorageRef { key: Some("k".into()), parameters: Arc::default(), path: "p".into(), schema_path: None };
        let format = ModelFormat { name: "onnx".into(), version: None };
        Arc::new(Registration::new(ModelId::new(id).expect("valid"), format, Placement::Format { protocol: None }, storage, None))
    }

    #[test]
    fn a_view_of_many_parts_is_read_as_it_was_written_and_half_a_file_is_told() {
        let names = (0..5_000).map(|n| {
            let entry = NameEntry { active: Some(registration(&format!("model-{n}__isvc-0123456789"))), target: None, failure: None };
            (Name::new(format!("model-{n}")).expect("valid"), Some(entry))
        });
        let called = registration("called");
        let view = View::default().with_names(names).with_managed([(called.id.clone(), Some(called))], []).numbered((3, 77), true);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("view");
        assert!(read(&path).expect("there is none").is_none());
        write(&path, &view).expect("written");
        let back = read(&path).expect("readable").expect("there is one");
        assert_eq!((back.number(), back.is_ready(), back.model_count()), ((3, 77), true, 5_001));
        assert!(back.is_managed_model("called") && matches!(back.resolve("model-4999"), Resolved::Model(_)));
        let bytes = std::fs::read(&path).expect("readable");
        assert!(bytes.len() > 2 * (256 << 10), "several parts");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
        assert!(read(&path).is_err());
        std::fs::write(&path, b"no view at all").expect("written");
        assert!(read(&path).is_err());
    }
}
