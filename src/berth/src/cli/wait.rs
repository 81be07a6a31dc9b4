//! `berth wait`: until a resource has come to a state, by watching it.

use std::str::FromStr;
use std::time::Duration;

use berth_registry::Kind;
use serde_json::Value;

use super::args;
use super::client::{Client, Scope};
use super::fault::Fault;
use super::kinds::{full_name, named};
use super::output::{Out, plain};
use super::resource::{NOT_SERVED, Standing, condition, is_managed, not_served};
use super::watch::{Change, Watch};

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// The model of the present spec is loaded.
    Loaded,
    /// The model is not in memory and one request away from it.
    Standby,
    /// The resource is gone.
    Delete,
    /// A condition has a value.
    Condition {
        /// Its type.
        name: String,
        /// Its status.
        value: String,
    },
}

impl FromStr for Awaited {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected loaded, standby, delete, condition=NAME or condition=NAME=VALUE";
        match text.split_once('=') {
            None => match text.to_ascii_lowercase().as_str() {
                "loaded" => Ok(Awaited::Loaded),
                "standby" => Ok(Awaited::Standby),
                "delete" => Ok(Awaited::Delete),
                _ => Err(expected.to_owned()),
            },
            Some(("condition", condition)) => {
                let (name, value) = condition.split_once('=').unwrap_or((condition, "True"));
                if name.is_empty() || value.is_empty() {
                    return Err(expected.to_owned());
                }
                Ok(Awaited::Condition { name: name.to_owned(), value: value.to_owned() })
            }
            Some(_) => Err(expected.to_owned()),
        }
    }
}

/// What a look at a resource says about the wait.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    /// Not by itself any more.
    Never(String),
    /// How it stands.
    NotYet(String),
}

/// `berth wait`.
///
/// # Errors
/// The time ran out, the model failed to load, or there is no such resource.
pub(crate) async fn wait(client: &Client, args: &args::Wait, out: &mut Out) -> Result<(), Fault> {
    let mut wanted = Vec::new();
    for named in named(&args.words)? {
        let kind = named.only_kind()?;
        let is_runtime = matches!(kind, Kind::ServingRuntime | Kind::ClusterServingRuntime);
        if is_runtime && args.awaited != Awaited::Delete {
            return Err(Fault::local("runtimes have no states: only --for=delete can be waited for"));
        }
        wanted.push((kind, named.name));
    }
    let deadline = client.clock().deadline_in(args.timeout);
    for (kind, name) in wanted {
        let namespace = kind.namespaced().then(|| args.namespace.namespace.clone());
        let scope = Scope { kind, namespace, selector: None, name: Some(name.clone()) };
        // The first look has a request's own deadline: with a time of 0s it is the only one.
        let (found, mut watch) = Watch::begin(client, scope).await?;
        let mut seen = match found.first() {
            Some(resource) => judge(&args.awaited, kind, resource),
            None if args.awaited == Awaited::Delete => Verdict::Met,
            None => return Err(Fault::not_found(kind, &name)),
        };
        loop {
            match seen {
                Verdict::Met => break out.line(&format!("{} condition met", full_name(kind, &name)))?,
                Verdict::Never(why) => return Err(Fault::local(format!("{}/{name}: {}", kind.plural(), plain(&why)))),
                Verdict::NotYet(standing) => match client.clock().until(deadline, watch.next()).await {
                    Some(Ok(Change::Is(resource))) => seen = judge(&args.awaited, kind, &resource),
                    Some(Ok(Change::Gone(_))) if args.awaited == Awaited::Delete => seen = Verdict::Met,
                    Some(Ok(Change::Gone(_))) => seen = Verdict::Never("it was deleted while it was waited for".to_owned()),
                    Some(Err(fault)) => return Err(fault),
                    None => return Err(Fault::local(timed_out(kind, &name, &standing, args.timeout))),
                },
            }
        }
    }
    Ok(())
}

fn timed_out(kind: Kind, name: &str, standing: &str, after: Duration) -> String {
    let after = humantime::format_duration(after);
    format!("timed out waiting for the condition on {}/{name}: after {after} it is {}", kind.plural(), plain(standing))
}

fn judge(awaited: &Awaited, kind: Kind, resource: &Value) -> Verdict {
    let standing = Standing::of(kind, resource);
    let stands = || {
        let state = standing.state.unwrap_or("without a status");
        let transition = standing.transition.map(|transition| format!(", {transition}")).unwrap_or_default();
        let failure = standing.failure_line().map(|failure| format!(", {failure}")).unwrap_or_default();
        format!("{state}{transition}{failure}")
    };
    if *awaited == Awaited::Delete {
        return Verdict::NotYet("still there".to_owned());
    }
    // Where a server says which spec its status is about, an older one says nothing about this one.
    let (seen, present) = (resource["status"]["observedGeneration"].as_u64(), resource["metadata"]["generation"].as_u64());
    if seen.zip(present).is_some_and(|(seen, present)| seen < present) {
        return Verdict::NotYet(stands());
    }
    let up_to_date = standing.transition == Some("UpToDate") && standing.target.is_none();
    let met = match awaited {
        Awaited::Delete => false,
        Awaited::Loaded => standing.state == Some("Loaded") && up_to_date,
        Awaited::Standby => standing.state == Some("Standby") && up_to_date,
        Awaited::Condition { name, value } => {
            // A Predictor has one condition, under another name.
            let is_ready = ["Ready", "Available"].iter().any(|known| known.eq_ignore_ascii_case(name));
            let found = if kind == Kind::Predictor && is_ready { Some(standing.ready) } else { condition(resource, name) };
            if found.is_some_and(|found| found.eq_ignore_ascii_case(value)) {
                return Verdict::Met;
            }
            if !value.eq_ignore_ascii_case("True") {
                return Verdict::NotYet(stands());
            }
            false
        }
    };
    if met {
        return Verdict::Met;
    }
    if !is_managed(kind, resource) {
        return Verdict::Never("it is left alone: the annotation serving.kserve.io/deploymentMode: ModelMesh makes it ours".to_owned());
    }
    if standing.name_is_taken() {
        return Verdict::Never(stands());
    }
    if let Awaited::Condition { name, .. } = awaited {
        // `Ready` waits for every part, another condition for its own one.
        let missing = not_served(resource).into_iter().filter(|(part, _)| name.eq_ignore_ascii_case("Ready") || name.eq_ignore_ascii_case(part));
        let missing: Vec<String> = missing.map(|(part, why)| format!("{part}, {NOT_SERVED}: {why}")).collect();
        if !missing.is_empty() {
            return Verdict::Never(format!("{}, {}", stands(), missing.join(", ")));
        }
    }
    let for_the_spec = !matches!(awaited, Awaited::Condition { .. });
    let failed = standing.state == Some("FailedToLoad") && standing.target.is_none_or(|target| target == "FailedToLoad")
        || for_the_spec && standing.target == Some("FailedToLoad");
    match standing.transition {
        Some("InvalidSpec") => Verdict::Never(stands()),
        _ if failed => Verdict::Never(stands()),
        _ => Verdict::NotYet(stands()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::resource::recorded;

    #[test]
    fn what_to_wait_for_is_read_as_kubectl_reads_it() {
        let ready = |value: &str| Awaited::Condition { name: "Ready".to_owned(), value: value.to_owned() };
        for (text, expected) in [
            ("loaded", Some(Awaited::Loaded)),
            ("Standby", Some(Awaited::Standby)),
            ("delete", Some(Awaited::Delete)),
            ("condition=Ready", Some(ready("True"))),
            ("condition=Ready=False", Some(ready("False"))),
            ("condition=", None),
            ("condition=Ready=", None),
            ("condition", None),
            ("jsonpath={.x}", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }

    fn predictor(state: &str, target: &str, transition: &str) -> Value {
        let mut predictor = recorded::blocked();
        predictor["status"]["activeModelState"] = state.into();
        predictor["status"]["targetModelState"] = target.into();
        predictor["status"]["transitionStatus"] = transition.into();
        predictor["status"]["available"] = (state != "FailedToLoad" && state != "Pending").into();
        predictor
    }

    #[test]
    fn a_wait_ends_when_it_is_met_and_when_it_cannot_be() {
        let condition = |name: &str, value: &str| Awaited::Condition { name: name.to_owned(), value: value.to_owned() };
        let (ready, unready) = (condition("ready", "true"), condition("Available", "False"));
        for (state, target, transition, awaited, expected) in [
            ("Loaded", "", "UpToDate", &Awaited::Loaded, "met"),
            ("Loaded", "Loading", "InProgress", &Awaited::Loaded, "not yet"),
            ("Loading", "", "UpToDate", &Awaited::Loaded, "not yet"),
            ("Standby", "", "UpToDate", &Awaited::Loaded, "not yet"),
            ("FailedToLoad", "", "UpToDate", &Awaited::Loaded, "never"),
            ("FailedToLoad", "Loading", "InProgress", &Awaited::Loaded, "not yet"),
            ("Loaded", "FailedToLoad", "BlockedByFailedLoad", &Awaited::Loaded, "never"),
            ("Loaded", "", "InvalidSpec", &Awaited::Loaded, "never"),
            ("Standby", "", "UpToDate", &Awaited::Standby, "met"),
            ("Loaded", "", "UpToDate", &Awaited::Standby, "not yet"),
            ("Standby", "FailedToLoad", "BlockedByFailedLoad", &Awaited::Standby, "never"),
            ("Standby", "", "UpToDate", &ready, "met"),
            ("Loaded", "FailedToLoad", "BlockedByFailedLoad", &ready, "met"),
            ("Pending", "", "UpToDate", &ready, "not yet"),
            ("FailedToLoad", "", "UpToDate", &ready, "never"),
            ("FailedToLoad", "", "UpToDate", &unready, "met"),
            ("Loaded", "", "UpToDate", &unready, "not yet"),
            ("Loaded", "", "UpToDate", &Awaited::Delete, "not yet"),
        ] {
            let verdict = judge(awaited, Kind::Predictor, &predictor(state, target, transition));
            let got = match &verdict {
                Verdict::Met => "met",
                Verdict::Never(_) => "never",
                Verdict::NotYet(_) => "not yet",
            };
            assert_eq!(got, expected, "{state} {target} {transition} for {awaited:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_status_of_an_older_spec_decides_nothing() {
        let mut loaded = predictor("Loaded", "", "UpToDate");
        for (seen, met) in [(1, false), (2, true)] {
            loaded["status"]["observedGeneration"] = seen.into();
            for awaited in ["loaded", "condition=Ready"] {
                let awaited: Awaited = awaited.parse().expect("what to wait for");
                assert_eq!(judge(&awaited, Kind::Predictor, &loaded) == Verdict::Met, met, "{awaited:?} at {seen}");
            }
        }
        let mut failed = predictor("FailedToLoad", "", "UpToDate");
        failed["status"]["observedGeneration"] = 1.into();
        assert!(matches!(judge(&Awaited::Loaded, Kind::Predictor, &failed), Verdict::NotYet(_)));
    }

    #[test]
    fn the_failure_is_part_of_the_end() {
        let blocked = judge(&Awaited::Loaded, Kind::Predictor, &recorded::blocked());
        let text = "Loaded, BlockedByFailedLoad, ModelLoadFailed at d4f-abcdefgh: no such\nobject";
        assert_eq!(blocked, Verdict::Never(text.to_owned()));
        assert_eq!(
            timed_out(Kind::Predictor, "m", text, Duration::from_secs(60)),
            "timed out waiting for the condition on predictors/m: after 1m it is Loaded, BlockedByFailedLoad, ModelLoadFailed at d4f-abcdefgh: \
             no such object"
        );
    }

    #[test]
    fn nobody_waits_for_a_name_that_somebody_else_has() {
        for kind in [Kind::Predictor, Kind::InferenceService] {
            let taken = recorded::name_taken(kind);
            for awaited in ["loaded", "standby", "condition=Ready"] {
                let awaited: Awaited = awaited.parse().expect("what to wait for");
                let Verdict::Never(why) = judge(&awaited, kind, &taken) else { panic!("{kind:?} {awaited:?}") };
                assert!(why.starts_with("Pending, UpToDate, InvalidPredictorSpec: ") && why.ends_with(": Predictor default/mnist has it"), "{why}");
            }
            // It says so, and it can be deleted.
            let unready: Awaited = "condition=Ready=False".parse().expect("what to wait for");
            assert_eq!(judge(&unready, kind, &taken), Verdict::Met);
            assert_eq!(judge(&Awaited::Delete, kind, &taken), Verdict::NotYet("still there".to_owned()));
        }
    }

    #[test]
    fn nobody_waits_for_a_part_that_is_not_served() {
        let mut service = recorded::without_transformer();
        for state in ["Loaded", "Loading"] {
            service["status"]["modelStatus"]["states"]["activeModelState"] = state.into();
            let end =
                format!("{state}, UpToDate, TransformerReady, NotServed: the transformer is not run here: requests reach the predictor without it");
            for (awaited, expected) in [
                ("condition=Ready", Verdict::Never(end.clone())),
                ("condition=transformerready", Verdict::Never(end.clone())),
                ("condition=PredictorReady", Verdict::Met),
                ("condition=Ready=False", Verdict::Met),
                ("condition=ExplainerReady", Verdict::NotYet(format!("{state}, UpToDate"))),
                ("loaded", if state == "Loaded" { Verdict::Met } else { Verdict::NotYet(format!("{state}, UpToDate")) }),
            ] {
                let awaited: Awaited = awaited.parse().expect("what to wait for");
                assert_eq!(judge(&awaited, Kind::InferenceService, &service), expected, "{awaited:?} while it is {state}");
            }
        }
    }

    #[test]
    fn a_service_is_waited_for_by_its_conditions_and_only_if_it_is_ours() {
        let ready: Awaited = "condition=PredictorReady".parse().expect("a condition");
        assert_eq!(judge(&ready, Kind::InferenceService, &recorded::loaded("a")), Verdict::Met);
        let fresh = json!({ "metadata": { "name": "a", "annotations": { "serving.kserve.io/deploymentMode": "ModelMesh" } } });
        assert_eq!(judge(&ready, Kind::InferenceService, &fresh), Verdict::NotYet("without a status".to_owned()));
        assert!(matches!(judge(&ready, Kind::InferenceService, &json!({ "metadata": { "name": "a" } })), Verdict::Never(_)));
    }
}
