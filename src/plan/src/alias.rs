//! Which version of a name serves, and which one should.
//!
//! The resource holds only the newest spec; while the version that serves is an older one, the pair of both is desired
//! state of its own. [`next`] says what the pair becomes and what that entails; keeping it, publishing it and carrying
//! the effects out is the caller's business, in that order: kept before a view names the target, published before the
//! old version is retired.

use std::sync::Arc;
use std::time::Duration;

use berth_types::{ModelId, Registration, UnixMillis};

use crate::resource::InvalidSpec;

/// At the latest this long after the target's first copy, the target takes over.
pub const SWITCH_AT_LATEST: Duration = Duration::from_secs(120);

/// The versions of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The one that serves; `None` while no valid spec was ever seen.
    pub active: Option<Arc<Registration>>,
    /// The one that should serve, when it is another one.
    pub target: Option<Arc<Registration>>,
}

/// What the decision to switch depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// Loaded copies of the active version.
    pub active_loaded: u32,
    /// Those of them that were used recently.
    pub active_used: u32,
    /// False when the active version cannot be loaded as things stand: it failed everywhere, or has no runtime.
    pub active_can_load: bool,
    /// Loaded copies of the target.
    pub target_loaded: u32,
    /// When its first copy was loaded.
    pub target_loaded_since: Option<UnixMillis>,
    /// True when the target cannot be loaded as things stand.
    pub target_failed: bool,
    /// Copies of the target that fit without evicting hotter models.
    pub target_room: u32,
    /// The status that names the target was published: users have seen `InProgress`.
    pub shown: bool,
}

/// What a step of the versions entails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A version that was not registered before: it wants its first load.
    Register(Arc<Registration>),
    /// The same id stands for a little more or less than before (its declared size).
    Amend(Arc<Registration>),
    /// No name refers to it any more: drain, unload and forget it.
    Retire(ModelId),
}

/// The answer of [`next`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// The versions from now on.
    pub versions: Versions,
    /// What follows, in order.
    pub effects: Vec<Effect>,
    /// The target took over in this step.
    pub switched: bool,
    /// When time alone may change the answer.
    pub look_again: Option<UnixMillis>,
}

/// One step: what the versions become when the resource wants `wanted`.
///
/// - An invalid spec leaves the active version as it is and drops the target.
/// - A new spec becomes the target; it never replaces a version unseen: first `InProgress` is published.
/// - Then it takes over at once if the active version has no loaded copy, unless the target has failed and the active one
///   could still be loaded: a bad update must not take down what works. Otherwise it takes over when it has as many
///   copies as were used of the active one and fit, at least one, or two minutes after its first copy.
#[must_use]
pub fn next(before: &Versions, wanted: Result<&Arc<Registration>, &InvalidSpec>, copies: &Copies, now: UnixMillis) -> Next {
    let mut next = Next { versions: before.clone(), ..Next::default() };
    let (Ok(wanted), Some(active)) = (wanted, &before.active) else {
        match wanted {
            Ok(wanted) => {
                next.versions.active = Some(wanted.clone());
                next.effects.push(Effect::Register(wanted.clone()));
            }
            Err(_) => next.effects.extend(next.versions.target.take().map(|target| Effect::Retire(target.id.clone()))),
        }
        return next;
    };
    if wanted.id == active.id {
        next.effects.extend(next.versions.target.take().map(|target| Effect::Retire(target.id.clone())));
        if wanted != active {
            next.versions.active = Some(wanted.clone());
            next.effects.push(Effect::Amend(wanted.clone()));
        }
        return next;
    }
    match &before.target {
        Some(target) if target.id == wanted.id => {
            if wanted != target {
                next.versions.target = Some(wanted.clone());
                next.effects.push(Effect::Amend(wanted.clone()));
            }
        }
        other => {
            next.effects.extend(other.as_ref().map(|target| Effect::Retire(target.id.clone())));
            next.versions.target = Some(wanted.clone());
            next.effects.push(Effect::Register(wanted.clone()));
            return next;
        }
    }
    if !copies.shown {
        return next;
    }
    let enough = copies.active_used.min(copies.target_room).max(1);
    let latest = copies.target_loaded_since.map(|since| since.after(SWITCH_AT_LATEST));
    let switch = if copies.target_loaded >= enough {
        true
    } else if copies.target_loaded > 0 {
        copies.active_loaded == 0 || latest.is_some_and(|latest| now >= latest)
    } else {
        copies.active_loaded == 0 && (!copies.target_failed || !copies.active_can_load)
    };
    if switch {
        next.effects.push(Effect::Retire(active.id.clone()));
        next.versions = Versions { active: next.versions.target.take(), target: None };
        next.switched = true;
    } else {
        next.look_again = latest;
    }
    next
}

#[cfg(test)]
mod tests {
    use berth_types::{ByteSize, ModelFormat, Placement, StorageRef};
    use proptest::prelude::*;

    use super::*;

    fn version(name: &str) -> Arc<Registration> {
        Arc::new(Registration::new(
            ModelId::new(name).expect("valid"),
            ModelFormat { name: "onnx".into(), version: None },
            Placement::Format { protocol: None },
            StorageRef { key: None, parameters: Default::default(), path: "p".into(), schema_path: None },
            None,
        ))
    }

    fn versions(active: Option<&str>, target: Option<&str>) -> Versions {
        Versions { active: active.map(version), target: target.map(version) }
    }

    const SERVING: Copies = Copies {
        active_loaded: 2,
        active_used: 2,
        active_can_load: true,
        target_loaded: 0,
        target_loaded_since: None,
        target_failed: false,
        target_room: 9,
        shown: true,
    };
    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn shown(next: &Next) -> String {
        let name = |version: &Option<Arc<Registration>>| version.as_ref().map_or("-".to_owned(), |version| version.id.to_string());
        let effects: Vec<String> = next
            .effects
            .iter()
            .map(|effect| match effect {
                Effect::Register(version) => format!("+{}", version.id),
                Effect::Amend(version) => format!("~{}", version.id),
                Effect::Retire(id) => format!("-{id}"),
            })
            .collect();
        format!("{}/{} {}", name(&next.versions.active), name(&next.versions.target), effects.join(" "))
    }

    #[test]
    fn versions_move_by_the_rules() {
        let since = |ago: u64| Some(UnixMillis(NOW.0 - ago));
        let cold = Copies { active_loaded: 0, active_used: 0, ..SERVING };
        for (case, before, wanted, copies, expected) in [
            ("a first version is registered", (None, None), Some("a"), cold, "a/- +a"),
            ("nothing valid was ever seen", (None, None), None, cold, "-/- "),
            ("nothing changed", (Some("a"), None), Some("a"), SERVING, "a/- "),
            ("an update gets a target", (Some("a"), None), Some("b"), SERVING, "a/b +b"),
            ("even when nothing is loaded, users see the target first", (Some("a"), None), Some("b"), cold, "a/b +b"),
            ("not switched before it was shown", (Some("a"), Some("b")), Some("b"), Copies { shown: false, ..cold }, "a/b "),
            ("switched at once when the active has no copy", (Some("a"), Some("b")), Some("b"), cold, "b/- -a"),
            (
                "but not to a failed target while the active can load",
                (Some("a"), Some("b")),
                Some("b"),
                Copies { target_failed: true, ..cold },
                "a/b ",
            ),
            (
                "to a failed target when the active has failed as well",
                (Some("a"), Some("b")),
                Some("b"),
                Copies { target_failed: true, active_can_load: false, ..cold },
                "b/- -a",
            ),
            ("the target waits for its first copy", (Some("a"), Some("b")), Some("b"), SERVING, "a/b "),
            (
                "one copy of two used is too few",
                (Some("a"), Some("b")),
                Some("b"),
                Copies { target_loaded: 1, target_loaded_since: since(1_000), ..SERVING },
                "a/b ",
            ),
            (
                "as many as were used",
                (Some("a"), Some("b")),
                Some("b"),
                Copies { target_loaded: 2, target_loaded_since: since(1_000), ..SERVING },
                "b/- -a",
            ),
            ("as many as fit", (Some("a"), Some("b")), Some("b"), Copies { target_loaded: 1, target_room: 1, ..SERVING }, "b/- -a"),
            ("nothing fits: one is still needed", (Some("a"), Some("b")), Some("b"), Copies { target_room: 0, ..SERVING }, "a/b "),
            ("an unused active needs one copy", (Some("a"), Some("b")), Some("b"), Copies { active_used: 0, target_loaded: 1, ..SERVING }, "b/- -a"),
            (
                "two minutes after the first copy",
                (Some("a"), Some("b")),
                Some("b"),
                Copies { target_loaded: 1, target_loaded_since: since(120_000), ..SERVING },
                "b/- -a",
            ),
            ("another update replaces the target", (Some("a"), Some("b")), Some("c"), SERVING, "a/c -b +c"),
            ("back to the active version", (Some("a"), Some("b")), Some("a"), SERVING, "a/- -b"),
            ("an invalid spec drops the target", (Some("a"), Some("b")), None, SERVING, "a/- -b"),
            ("an invalid spec leaves the active", (Some("a"), None), None, SERVING, "a/- "),
        ] {
            let fault = InvalidSpec { message: "spec is missing".to_owned() };
            let wanted = wanted.map(version);
            let next = next(&versions(before.0, before.1), wanted.as_ref().ok_or(&fault), &copies, NOW);
            assert_eq!(shown(&next), expected, "{case}");
            assert_eq!(next.switched, next.versions.active.as_ref() != before.0.map(version).as_ref() && before.0.is_some(), "{case}");
        }
    }

    #[test]
    fn a_target_short_of_copies_is_looked_at_again_when_its_time_is_up() {
        let copies = Copies { target_loaded: 1, target_loaded_since: Some(NOW), ..SERVING };
        assert_eq!(next(&versions(Some("a"), Some("b")), Ok(&version("b")), &copies, NOW).look_again, Some(NOW.after(SWITCH_AT_LATEST)));
    }

    #[test]
    fn a_new_declared_size_amends_the_version_and_registers_nothing() {
        let sized = Arc::new(Registration { declared_size: Some(ByteSize(5)), ..(*version("a")).clone() });
        let next = next(&versions(Some("a"), None), Ok(&sized), &SERVING, NOW);
        assert_eq!(next.versions.active.as_ref(), Some(&sized));
        assert_eq!(next.effects, [Effect::Amend(sized)]);
    }

    fn any_copies() -> impl Strategy<Value = Copies> {
        (0u32..3, 0u32..3, any::<bool>(), 0u32..3, prop::option::of(800_000u64..1_000_000), any::<bool>(), 0u32..3, any::<bool>()).prop_map(
            |(active_loaded, used, active_can_load, target_loaded, since, target_failed, target_room, shown)| Copies {
                active_loaded,
                active_used: used.min(active_loaded),
                active_can_load,
                target_loaded,
                target_loaded_since: since.map(UnixMillis),
                target_failed,
                target_room,
                shown,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn a_name_that_serves_keeps_serving_and_every_id_is_registered_and_retired_once(
            active in prop::option::of(prop::sample::select(vec!["a", "b", "c"])),
            target in prop::option::of(prop::sample::select(vec!["a", "b", "c"])),
            wanted in prop::option::of(prop::sample::select(vec!["a", "b", "c"])),
            copies in any_copies(),
        ) {
            let before = versions(active, target.filter(|target| active.is_some() && active != Some(*target)));
            let fault = InvalidSpec { message: "spec is missing".to_owned() };
            let wanted = wanted.map(version);
            let next = next(&before, wanted.as_ref().ok_or(&fault), &copies, NOW);
            prop_assert!(before.active.is_none() || next.versions.active.is_some());
            if let Some(wanted) = &wanted {
                prop_assert!([&next.versions.active, &next.versions.target].contains(&&Some(wanted.clone())), "the resource's spec is one of the two");
            }
            if next.switched {
                prop_assert!(copies.shown);
                prop_assert!(copies.active_loaded == 0 || copies.target_loaded > 0, "a serving version is left only for a loaded one");
            }
            // The ids that were there, plus those registered, minus those retired, are the ids that are there.
            let ids = |versions: &Versions| [&versions.active, &versions.target].into_iter().flatten().map(|version| version.id.clone()).collect::<Vec<_>>();
            let mut there = ids(&before);
            for effect in &next.effects {
                match effect {
                    Effect::Register(version) => { prop_assert!(!there.contains(&version.id)); there.push(version.id.clone()); }
                    Effect::Retire(id) => { prop_assert!(there.contains(id)); there.retain(|other| other != id); }
                    Effect::Amend(version) => prop_assert!(there.contains(&version.id)),
                }
            }
            let mut after = ids(&next.versions);
            there.sort();
            after.sort();
            prop_assert_eq!(there, after);
        }
    }
}
