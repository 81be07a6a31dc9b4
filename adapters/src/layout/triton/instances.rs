//! Which device a model's instances run on.

use super::super::pbtxt::{Document, Edit, Fields as _, Message};
use super::Device;

/// The fields of a group that say where.
fn fields(device: Device) -> String {
    match device {
        Device::Cpu => "kind: KIND_CPU".to_owned(),
        Device::Gpu(number) => format!("kind: KIND_GPU gpus: [ {number} ]"),
    }
}

/// One group on the device.
pub(super) fn group(device: Device) -> String {
    format!("instance_group [ {{ {} }} ]", fields(device))
}

/// Puts the groups of a configuration on the device, their counts and everything else as they are. Groups that name CPU or
/// MODEL stay: their model asks for it. Without a group there is one.
pub(super) fn place(document: &Document<'_>, device: Device, edit: &mut Edit<'_, '_>) {
    let mut any = false;
    for message in document.messages("instance_group") {
        any = true;
        if stays(message) {
            continue;
        }
        let inside = message.span.start + 1;
        edit.replace(inside..inside, &format!(" {}", fields(device)));
        for field in message.fields.iter().filter(|field| matches!(field.name.as_str(), "kind" | "gpus" | "secondary_devices")) {
            edit.replace(field.span.clone(), "");
        }
    }
    if !any {
        edit.replace_field("instance_group", &group(device));
    }
}

/// Whether a group is put on a GPU by its own words.
pub(super) fn any_on_a_gpu(document: &Document<'_>) -> bool {
    let kinds = document.messages("instance_group").filter_map(|group| group.scalar("kind"));
    kinds.into_iter().any(|kind| matches!(kind.to_string().as_str(), "KIND_GPU" | "1"))
}

/// Whether a backend computes on the CPU only, whatever there is.
pub(super) fn is_for_cpu(backend: Option<&str>) -> bool {
    backend == Some("openvino")
}

fn stays(group: &Message) -> bool {
    // By name or by the enum's number.
    group.scalar("kind").is_some_and(|kind| matches!(kind.to_string().as_str(), "KIND_CPU" | "KIND_MODEL" | "2" | "3"))
}
