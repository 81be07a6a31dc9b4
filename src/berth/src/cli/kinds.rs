//! What the words `isvc`, `predictor NAME` or `isvc/NAME` on a command line stand for.

use berth_registry::Kind;

use super::fault::Fault;

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Every resource of these kinds.
    All(Vec<Kind>),
    /// These resources.
    Named(Vec<Named>),
}

/// One resource by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its kind; of several, the first one that has the name.
    pub(crate) kinds: &'static [Kind],
    /// Its name.
    pub(crate) name: String,
}

impl Named {
    /// The kind, where only one can be meant.
    ///
    /// # Errors
    /// When the word stands for several.
    pub(crate) fn only_kind(&self) -> Result<Kind, Fault> {
        match self.kinds {
            [kind] => Ok(*kind),
            _ => Err(Fault::local("runtime stands for two kinds: say servingruntime or clusterservingruntime")),
        }
    }
}

/// What stands for a model: looked at where no kind is given.
pub(crate) const MODELS: &[Kind] = &[Kind::InferenceService, Kind::Predictor];

/// The kinds that a word stands for: any of their Kubernetes names, with or without the group.
///
/// # Errors
/// The word is none of them.
pub(crate) fn kinds(word: &str) -> Result<&'static [Kind], Fault> {
    let lower = word.to_ascii_lowercase();
    let (short, group) = lower.split_once('.').unwrap_or((&lower, Kind::GROUP));
    let found: Option<&'static [Kind]> = match short {
        "isvc" | "inferenceservice" | "inferenceservices" => Some(&[Kind::InferenceService]),
        "predictor" | "predictors" => Some(&[Kind::Predictor]),
        "servingruntime" | "servingruntimes" => Some(&[Kind::ServingRuntime]),
        "clusterservingruntime" | "clusterservingruntimes" => Some(&[Kind::ClusterServingRuntime]),
        "runtime" | "runtimes" => Some(&[Kind::ServingRuntime, Kind::ClusterServingRuntime]),
        _ => None,
    };
    // Besides the group, `v1beta1.serving.kserve.io` is how kubectl writes a version.
    let ours = group == Kind::GROUP || group.strip_suffix(Kind::GROUP).is_some_and(|version| version.ends_with('.'));
    found.filter(|_| ours).ok_or_else(|| {
        Fault::local(format!("the server doesn't have a resource type {word:?}: there are isvc, predictor, servingruntime, clusterservingruntime and runtime, the last two together"))
    })
}

/// Reads `KIND[,KIND...] [NAME...]` or `KIND/NAME...`; without any word it is every resource of `usual`.
///
/// # Errors
/// An unknown kind, a name that is missing, both forms mixed.
pub(crate) fn selection(words: &[String], usual: &[Kind]) -> Result<Selection, Fault> {
    let Some(first) = words.first() else {
        return Ok(Selection::All(usual.to_vec()));
    };
    if words.iter().any(|word| word.contains('/')) {
        let pair = |word: &String| match word.split_once('/') {
            Some((kind, name)) => Ok(Named { kinds: kinds(kind)?, name: checked(name)? }),
            None => Err(Fault::local(format!("there is no need to name a kind apart when KIND/NAME is used: {word:?} has no /"))),
        };
        return words.iter().map(pair).collect::<Result<_, _>>().map(Selection::Named);
    }
    let groups = first.split(',').map(kinds).collect::<Result<Vec<_>, _>>()?;
    if words.len() == 1 {
        let mut all: Vec<Kind> = Vec::new();
        for kind in groups.into_iter().flatten() {
            if !all.contains(kind) {
                all.push(*kind);
            }
        }
        return Ok(Selection::All(all));
    }
    let mut named = Vec::new();
    for kinds in groups {
        for name in &words[1..] {
            named.push(Named { kinds, name: checked(name)? });
        }
    }
    Ok(Selection::Named(named))
}

/// The same where every resource must be named.
///
/// # Errors
/// As [`selection`], and when no name is given.
pub(crate) fn named(words: &[String]) -> Result<Vec<Named>, Fault> {
    match selection(words, &[])? {
        Selection::Named(named) => Ok(named),
        Selection::All(_) => Err(Fault::local("a name is missing: say KIND NAME or KIND/NAME")),
    }
}

fn checked(name: &str) -> Result<String, Fault> {
    match name {
        "" => Err(Fault::local("a name is missing after KIND/")),
        "." | ".." => Err(Fault::local(format!("{name:?} is no name of a resource"))),
        name if name.contains('/') => Err(Fault::local(format!("{name:?} is no name of a resource"))),
        name => Ok(name.to_owned()),
    }
}

/// `inferenceservice.serving.kserve.io/NAME`: how kubectl names a resource in its answers.
pub(crate) fn full_name(kind: Kind, name: &str) -> String {
    format!("{}/{name}", full_kind(kind))
}

/// `inferenceservice.serving.kserve.io`.
pub(crate) fn full_kind(kind: Kind) -> String {
    format!("{}.{}", kind.as_str().to_ascii_lowercase(), Kind::GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Selection, String> {
        selection(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), MODELS).map_err(|fault| fault.to_string())
    }

    fn one(kinds: &'static [Kind], name: &str) -> Named {
        Named { kinds, name: name.to_owned() }
    }

    #[test]
    fn words_stand_for_kinds_and_names_as_in_kubectl() {
        const ISVC: &[Kind] = &[Kind::InferenceService];
        const RUNTIMES: &[Kind] = &[Kind::ServingRuntime, Kind::ClusterServingRuntime];
        for (words, expected) in [
            (&[][..], Selection::All(MODELS.to_vec())),
            (&["isvc"], Selection::All(ISVC.to_vec())),
            (&["InferenceServices.v1beta1.serving.kserve.io"], Selection::All(ISVC.to_vec())),
            (&["isvc,runtimes,servingruntime"], Selection::All(vec![Kind::InferenceService, Kind::ServingRuntime, Kind::ClusterServingRuntime])),
            (&["isvc", "a", "b"], Selection::Named(vec![one(ISVC, "a"), one(ISVC, "b")])),
            (&["isvc,runtime", "a"], Selection::Named(vec![one(ISVC, "a"), one(RUNTIMES, "a")])),
            (&["isvc/a", "runtime/b"], Selection::Named(vec![one(ISVC, "a"), one(RUNTIMES, "b")])),
        ] {
            assert_eq!(read(words), Ok(expected), "{words:?}");
        }
    }

    #[test]
    fn words_that_stand_for_nothing_are_told() {
        for (words, text) in [
            (&["pods"][..], "error: the server doesn't have a resource type \"pods\""),
            (&["isvc.other.io"], "error: the server doesn't have a resource type \"isvc.other.io\""),
            (&["isvc.notserving.kserve.io"], "error: the server doesn't have a resource type"),
            (&["isvc,"], "error: the server doesn't have a resource type \"\""),
            (&["isvc/"], "error: a name is missing after KIND/"),
            (&["isvc", "a", "predictor/b"], "error: there is no need to name a kind apart when KIND/NAME is used: \"isvc\" has no /"),
            (&["isvc/a/b"], "error: \"a/b\" is no name of a resource"),
            (&["isvc", ".."], "error: \"..\" is no name of a resource"),
        ] {
            let fault = read(words).expect_err("refused");
            assert!(fault.starts_with(text), "{words:?}: {fault}");
        }
        assert!(named(&["isvc".to_owned()]).is_err());
        let both = named(&["runtime".to_owned(), "a".to_owned()]).expect("names");
        assert!(both[0].only_kind().is_err());
    }
}
