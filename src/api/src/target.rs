//! What a path of the API stands for.

use berth_registry::{Kind, ObjectKey};
use berth_types::{Name, Namespace};

/// What a client asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Health,
    Version,
    /// `/api`: the legacy group, which is empty here; clients ask for it when they look around.
    Core,
    CoreResources,
    Groups,
    Group,
    /// The resources of a version of the group.
    Resources(&'static str),
    /// Where descriptions of the API are.
    OpenApi,
    /// The description of a version of the group.
    OpenApiOf(&'static str),
    /// Every resource of a kind, in one namespace or in all.
    Collection {
        kind: Kind,
        namespace: Option<Namespace>,
    },
    One(ObjectKey),
    /// The status of one resource, which can only be read.
    Status(ObjectKey),
    /// What is wrong with the watched folder.
    Faults,
    /// The number and size of the present view.
    View,
    /// Who has which memory.
    Memory,
    /// What is being fetched.
    Downloads,
    /// Which pods serve other bytes than the first good ones.
    Drifts,
}

impl Target {
    /// It is about what a store holds, or what follows from it.
    pub(crate) fn is_of_resources(&self) -> bool {
        matches!(self, Target::Collection { .. } | Target::One(_) | Target::Status(_) | Target::Faults | Target::Drifts)
    }

    /// The methods that can be used on it, as the header `Allow` has them.
    pub(crate) fn methods(&self) -> &'static str {
        match self {
            Target::One(_) => "GET, HEAD, PUT, PATCH, DELETE",
            Target::Collection { kind, namespace } if kind.namespaced() == namespace.is_some() => "GET, HEAD, POST, DELETE",
            Target::Collection { .. }
            | Target::Status(_)
            | Target::Health
            | Target::Version
            | Target::Core
            | Target::CoreResources
            | Target::Groups
            | Target::Group
            | Target::Resources(_)
            | Target::OpenApi
            | Target::OpenApiOf(_)
            | Target::Faults
            | Target::View
            | Target::Memory
            | Target::Downloads
            | Target::Drifts => "GET, HEAD",
        }
    }
}

/// The versions of the group, the preferred one first.
pub(crate) const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];

/// Reads a path; `None` when nothing is there.
pub(crate) fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match &parts[..] {
        ["healthz" | "livez" | "readyz"] => Some(Target::Health),
        ["version"] => Some(Target::Version),
        ["api"] => Some(Target::Core),
        ["api", "v1"] => Some(Target::CoreResources),
        ["apis"] => Some(Target::Groups),
        ["openapi", "v3"] => Some(Target::OpenApi),
        ["openapi", "v3", "apis", group, version] if *group == Kind::GROUP => {
            VERSIONS.into_iter().find(|known| known == version).map(Target::OpenApiOf)
        }
        ["berth", "v1", "faults"] => Some(Target::Faults),
        ["berth", "v1", "view"] => Some(Target::View),
        ["berth", "v1", "memory"] => Some(Target::Memory),
        ["berth", "v1", "downloads"] => Some(Target::Downloads),
        ["berth", "v1", "drifts"] => Some(Target::Drifts),
        ["apis", group, rest @ ..] if *group == Kind::GROUP => in_group(rest),
        _ => None,
    }
}

fn in_group(parts: &[&str]) -> Option<Target> {
    let kind = |version: &str, plural: &str| Kind::ALL.into_iter().find(|kind| kind.version() == version && kind.plural() == plural);
    match parts {
        [] => Some(Target::Group),
        [version] => VERSIONS.into_iter().find(|known| known == version).map(Target::Resources),
        [version, plural] => Some(Target::Collection { kind: kind(version, plural)?, namespace: None }),
        [version, plural, name] => {
            let kind = kind(version, plural).filter(|kind| !kind.namespaced())?;
            Some(Target::One(ObjectKey { kind, namespace: None, name: Name::new(name).ok()? }))
        }
        [version, "namespaces", namespace, plural] => {
            let kind = kind(version, plural).filter(|kind| kind.namespaced())?;
            Some(Target::Collection { kind, namespace: Some(Namespace::new(namespace).ok()?) })
        }
        [version, "namespaces", namespace, plural, name] => {
            let kind = kind(version, plural).filter(|kind| kind.namespaced())?;
            Some(Target::One(ObjectKey { kind, namespace: Some(Namespace::new(namespace).ok()?), name: Name::new(name).ok()? }))
        }
        [whole @ .., "status"] => match in_group(whole)? {
            Target::One(key) => Some(Target::Status(key)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_kubernetes() {
        let key = |kind, namespace: Option<&str>, name: &str| {
            Some(Target::One(ObjectKey { kind, namespace: namespace.map(|text| Namespace::new(text).unwrap()), name: Name::new(name).unwrap() }))
        };
        let status = |kind, namespace, name| match key(kind, namespace, name) {
            Some(Target::One(key)) => Some(Target::Status(key)),
            other => other,
        };
        let all = |kind, namespace: Option<&str>| Some(Target::Collection { kind, namespace: namespace.map(|text| Namespace::new(text).unwrap()) });
        for (path, expected) in [
            ("/healthz", Some(Target::Health)),
            ("/apis/", Some(Target::Groups)),
            ("/openapi/v3", Some(Target::OpenApi)),
            ("/openapi/v3/apis/serving.kserve.io/v1alpha1", Some(Target::OpenApiOf("v1alpha1"))),
            ("/openapi/v3/apis/serving.kserve.io/v1", None),
            ("/openapi/v2", None),
            ("/apis/serving.kserve.io", Some(Target::Group)),
            ("/apis/serving.kserve.io/v1beta1", Some(Target::Resources("v1beta1"))),
            ("/apis/serving.kserve.io/v1beta1/inferenceservices", all(Kind::InferenceService, None)),
            ("/apis/serving.kserve.io/v1beta1/namespaces/ns/inferenceservices", all(Kind::InferenceService, Some("ns"))),
            ("/apis/serving.kserve.io/v1beta1/namespaces/ns/inferenceservices/a", key(Kind::InferenceService, Some("ns"), "a")),
            ("/apis/serving.kserve.io/v1alpha1/namespaces/ns/predictors/p.q", key(Kind::Predictor, Some("ns"), "p.q")),
            ("/apis/serving.kserve.io/v1alpha1/clusterservingruntimes", all(Kind::ClusterServingRuntime, None)),
            ("/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/r", key(Kind::ClusterServingRuntime, None, "r")),
            ("/apis/serving.kserve.io/v1beta1/namespaces/ns/inferenceservices/a/status", status(Kind::InferenceService, Some("ns"), "a")),
            ("/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/r/status", status(Kind::ClusterServingRuntime, None, "r")),
            ("/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/status", key(Kind::ClusterServingRuntime, None, "status")),
            ("/apis/serving.kserve.io/v1beta1/namespaces/ns/inferenceservices/status", key(Kind::InferenceService, Some("ns"), "status")),
            ("/apis/serving.kserve.io/v1beta1/namespaces/ns/inferenceservices/a/status/status", None),
            ("/apis/serving.kserve.io/v1beta1/namespaces/ns/inferenceservices/a/scale", None),
            ("/", None),
            ("/apis/apps", None),
            ("/apis/serving.kserve.io/v1", None),
            ("/apis/serving.kserve.io/v1alpha1/inferenceservices", None),
            ("/apis/serving.kserve.io/v1beta1/inferenceservices/a", None),
            ("/apis/serving.kserve.io/v1alpha1/namespaces/ns/clusterservingruntimes", None),
            ("/apis/serving.kserve.io/v1beta1/namespaces//inferenceservices", None),
            ("/apis/serving.kserve.io/v1beta1/namespaces/ns/inferenceservices/a/b", None),
        ] {
            assert_eq!(target(path), expected, "{path}");
        }
    }
}
