//! The rules: what is asked, what must come, and how each is tried out.

use berth_types::ModelId;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::trial::{Bench, Checked, Short, ensure, shown};
use crate::{IndexEntry, InferError, LoadFault, ParkError};

/// One thing that every runtime must do. Its page is the section of its name in `docs/check-runtime.md`.
pub struct Rule {
    /// Short, with dashes.
    pub name: &'static str,
    /// What is asked of the runtime.
    pub asks: &'static str,
    /// What must come, and why.
    pub contract: &'static str,
    /// What to do about a server that breaks it.
    pub advice: &'static str,
    pub(super) run: for<'a> fn(&'a Bench<'_>) -> BoxFuture<'a, Checked>,
}

/// What is checked before the others can be: the server says that it is ready.
pub static READY: Rule = Rule {
    name: "ready",
    asks: "how does it stand?",
    contract: "in time it says that it is ready, with limits that make sense, holds no model then and takes orders",
    advice: "answer READY as soon as orders are taken, and STARTING until then; name a capacity of at least two models of the default size, \
             one load at a time or more, and 100 ms for a load or more; a model repository must be in explicit mode",
    run: |_bench| async { Ok(()) }.boxed(),
};

/// The rules, in the order in which they are tried.
pub static RULES: [Rule; 11] = [
    Rule {
        name: "empty-at-start",
        asks: "what does it hold, and who is it?",
        contract: "a server that is ready holds no model, and what describes it has a name and a version",
        advice: "unload every model before READY is answered; an orchestrator that restarts must be able to start from nothing",
        run: |bench| nothing_is_held_at_first(bench).boxed(),
    },
    Rule {
        name: "files-take-no-memory",
        asks: "files of a model are laid out twice, and the model is asked before it is loaded",
        contract: "only an order loads: the model is not there, and a request for it is answered NOT_FOUND",
        advice: "load nothing by looking at the folder; answer requests for models that are not loaded with NOT_FOUND",
        run: |bench| a_layout_is_no_load(bench).boxed(),
    },
    Rule {
        name: "load-is-ready",
        asks: "a good model is loaded, asked, and loaded again",
        contract: "a load that is answered is over: the model answers requests at once, under its own name, with the request's id; loading what \
                   is loaded succeeds and changes nothing",
        advice: "answer the order to load only when the model computes; copy model_name and id into answers; treat a second load as done",
        run: |bench| a_load_is_over_when_it_is_answered(bench).boxed(),
    },
    Rule {
        name: "unload-is-gone",
        asks: "a model is unloaded, twice over",
        contract: "a model that was unloaded is gone: it takes no memory, and a request for it is answered NOT_FOUND; it can be loaded again",
        advice: "answer the order to unload when the memory is free, and forget the model: Berth gives the memory to another one then",
        run: |bench| an_unloaded_model_is_gone(bench).boxed(),
    },
    Rule {
        name: "one-copy",
        asks: "a model is loaded by two orders at once",
        contract: "both succeed, and there is one copy",
        advice: "have a second order wait for the load that is under way",
        run: |bench| concurrent_loads_are_one(bench).boxed(),
    },
    Rule {
        name: "abandoned-load",
        asks: "an order to load is given up while it is under way, and the model unloaded",
        contract: "whatever became of the load, an unload is taken and the model is gone afterwards",
        advice: "stop a load whose call is cancelled, or finish it; an unload that meets it must wait for its end and then unload",
        run: |bench| a_load_outlives_its_caller(bench).boxed(),
    },
    Rule {
        name: "bad-model",
        asks: "files that are no model are loaded (a web page in place of the model)",
        contract: "the load fails with words that say why, and takes no memory; the code is one that says that the files are to blame \
                   (INVALID_ARGUMENT, FAILED_PRECONDITION, NOT_FOUND, INTERNAL or UNKNOWN), not that the server is",
        advice: "read the files when they are loaded, not at the first request; keep UNAVAILABLE and RESOURCE_EXHAUSTED for servers that are not \
                 ready or full: those loads are tried again elsewhere",
        run: |bench| a_bad_model_holds_nothing(bench).boxed(),
    },
    Rule {
        name: "unknown-unload",
        asks: "a model that was never loaded is unloaded",
        contract: "that is a success, or NOT_FOUND: an unload may be asked for again after an answer that got lost",
        advice: "answer OK or NOT_FOUND: any other code is asked for again and again, and the memory counts as in use until then",
        run: |bench| unknown_models_are_no_fault(bench).boxed(),
    },
    Rule {
        name: "passed-deadline",
        asks: "a request whose deadline has passed",
        contract: "it is not computed: DEADLINE_EXCEEDED",
        advice: "look at the deadline before a request is computed",
        run: |bench| a_passed_deadline_is_no_inference(bench).boxed(),
    },
    Rule {
        name: "copies-apart",
        asks: "two models are loaded from the same files, and one is unloaded",
        contract: "the other stays and answers: models are known by their ids",
        advice: "keep what belongs to a model under its id, not under its path",
        run: |bench| copies_are_apart(bench).boxed(),
    },
    Rule {
        name: "parking",
        asks: "a model is parked and woken",
        contract: "a runtime that parks lists the model as parked, answers nothing for it meanwhile and as before once it is woken; one that does \
                   not says so, and nothing changes",
        advice: "this is the adapter's: an answer of \"not supported\" must leave the copy as it was",
        run: |bench| a_parked_model_sleeps_until_it_is_woken(bench).boxed(),
    },
];

/// Every id that the rules load or unload.
pub(super) fn models() -> Vec<ModelId> {
    let ids = [
        super::BROKEN,
        "nobody__isvc-0000000000",
        "files__isvc-0000000010",
        "first__isvc-0000000001",
        "gone__isvc-0000000011",
        "shared__isvc-0000000002",
        "orphan__isvc-0000000003",
        "never__isvc-0000000004",
        "late__isvc-0000000005",
        "one__isvc-0000000006",
        "other__ksp-0000000007",
        "parked__isvc-0000000008",
        "described__isvc-0000000009",
    ];
    ids.into_iter().filter_map(|id| ModelId::new(id).ok()).collect()
}

async fn nothing_is_held_at_first(bench: &Bench<'_>) -> Checked {
    let held: Vec<_> = bench.index().await?.iter().map(|(model, _)| model.to_string()).collect();
    ensure(held.is_empty(), || format!("it holds {}", held.join(", ")))?;
    let info = bench.runtime().info();
    ensure(!info.name.is_empty() && !info.version.is_empty(), || format!("its name is {:?} and its version {:?}", info.name, info.version))
}

async fn a_layout_is_no_load(bench: &Bench<'_>) -> Checked {
    let model = bench.registration("files__isvc-0000000010");
    bench.does_not_answer(&model.id, "before anything was laid out").await?;
    let first = bench.lay_out(&model).await?;
    let again = bench.lay_out(&model).await?;
    ensure(first == again, || format!("a layout made twice is {first:?} and {again:?}"))?;
    bench.listed(&model.id, None, "with nothing but its files there").await?;
    bench.does_not_answer(&model.id, "with nothing but its files there").await
}

async fn a_load_is_over_when_it_is_answered(bench: &Bench<'_>) -> Checked {
    let model = bench.registration("first__isvc-0000000001");
    for round in ["after its load", "after it was unloaded and loaded again"] {
        let laid_out = bench.lay_out(&model).await?;
        let loaded = bench.load_laid_out(&model, &laid_out).await?;
        bench.listed(&model.id, Some(IndexEntry::Ready), round).await?;
        bench.answers(&model.id, round).await?;
        bench.is_described(&model.id).await?;
        let again = bench.within("the load of a loaded model", bench.runtime().load(&model, &laid_out)).await?;
        let again = again.map_err(|why| format!("a loaded model does not load: {why}"))?;
        ensure(again == loaded, || format!("a load of a loaded model says {again:?}, the first one said {loaded:?}"))?;
        bench.answers(&model.id, "after a second load").await?;
        bench.unload(&model.id).await?;
    }
    Ok(())
}

async fn an_unloaded_model_is_gone(bench: &Bench<'_>) -> Checked {
    let model = bench.registration("gone__isvc-0000000011");
    for _round in 0..2 {
        bench.load(&model).await?;
        bench.unload(&model.id).await?;
        bench.listed(&model.id, None, "after its unload").await?;
        bench.does_not_answer(&model.id, "after its unload").await?;
        bench.is_not_described(&model.id, "after its unload").await?;
    }
    Ok(())
}

async fn concurrent_loads_are_one(bench: &Bench<'_>) -> Checked {
    let model = bench.registration("shared__isvc-0000000002");
    let laid_out = bench.lay_out(&model).await?;
    let loads = async { tokio::join!(bench.runtime().load(&model, &laid_out), bench.runtime().load(&model, &laid_out)) };
    let (one, other) = bench.within("two loads of one model", loads).await?;
    ensure(one.is_ok() && one == other, || format!("the two loads of one model say {one:?} and {other:?}"))?;
    let held = bench.held().await?;
    ensure(held == [model.id.clone()], || format!("after two loads of {} it holds {held:?}", model.id))?;
    bench.unload(&model.id).await?;
    bench.listed(&model.id, None, "after one unload").await
}

async fn a_load_outlives_its_caller(bench: &Bench<'_>) -> Checked {
    let model = bench.registration("orphan__isvc-0000000003");
    let laid_out = bench.lay_out(&model).await?;
    // Polled once, so that the runtime was told, then dropped.
    let _ = bench.runtime().load(&model, &laid_out).now_or_never();
    // Whatever the runtime makes of it, the index says so, an unload is taken, and a proof comes.
    bench.unload(&model.id).await?;
    bench.listed(&model.id, None, "after its unload").await
}

async fn a_bad_model_holds_nothing(bench: &Bench<'_>) -> Checked {
    let model = bench.registration(super::BROKEN);
    let laid_out = bench.within("the layout of bad files", bench.runtime().lay_out(&model, bench.bad())).await?;
    let failed = match laid_out {
        Err(failed) => failed,
        Ok(laid_out) => match bench.within("the load of bad files", bench.runtime().load(&model, &laid_out)).await? {
            Err(failed) => failed,
            Ok(_loaded) => return Err(Short::Broken("files that are no model were loaded".to_owned())),
        },
    };
    ensure(failed.fault == LoadFault::BadModel, || format!("it fails as {:?}, not as a bad model: {failed}", failed.fault))?;
    ensure(failed.message.len() > 10, || format!("all that it says of the fault is {:?}", failed.message))?;
    bench.listed(&model.id, None, "after its load has failed").await?;
    bench.unload(&model.id).await
}

async fn unknown_models_are_no_fault(bench: &Bench<'_>) -> Checked {
    let id = bench.registration("never__isvc-0000000004").id;
    bench.unload(&id).await?;
    bench.is_not_described(&id, "without having been loaded").await
}

async fn a_passed_deadline_is_no_inference(bench: &Bench<'_>) -> Checked {
    let model = bench.registration("late__isvc-0000000005");
    bench.load(&model).await?;
    match bench.infer_too_late(&model.id).await? {
        Err(InferError::DeadlineExceeded) => bench.unload(&model.id).await,
        Err(other) => Err(Short::Broken(format!("it is answered {other}"))),
        Ok(_answer) => Err(Short::Broken("it is answered".to_owned())),
    }
}

async fn copies_are_apart(bench: &Bench<'_>) -> Checked {
    let (one, other) = (bench.registration("one__isvc-0000000006"), bench.registration("other__ksp-0000000007"));
    bench.load(&one).await?;
    bench.load(&other).await?;
    let held = bench.held().await?;
    ensure(held.len() == 2, || format!("after the loads of two models it holds {held:?}"))?;
    bench.unload(&one.id).await?;
    bench.listed(&other.id, Some(IndexEntry::Ready), "after the unload of another one").await?;
    bench.answers(&other.id, "after the unload of another one").await?;
    bench.unload(&other.id).await
}

async fn a_parked_model_sleeps_until_it_is_woken(bench: &Bench<'_>) -> Checked {
    let model = bench.registration("parked__isvc-0000000008");
    let id = &model.id;
    let loaded = bench.load(&model).await?;
    match bench.within("the order to park", bench.runtime().park(id)).await? {
        Err(ParkError::NotSupported) => {
            bench.listed(id, Some(IndexEntry::Ready), "after it was not parked").await?;
            bench.answers(id, "after it was not parked").await?;
            let woken = bench.within("the order to wake", bench.runtime().wake(id)).await?;
            ensure(woken == Err(ParkError::NotSupported), || format!("a runtime that does not park wakes: {woken:?}"))?;
            bench.unload(id).await?;
            Err(Short::Unchecked("the runtime does not park models".to_owned()))
        }
        Err(ParkError::Refused(why)) => Err(Short::Broken(format!("a loaded model is not parked: {why}"))),
        Ok(_takes) => {
            bench.listed(id, Some(IndexEntry::Parked), "once it is parked").await?;
            bench.does_not_answer(id, "once it is parked").await?;
            let again = bench.within("the order to park", bench.runtime().park(id)).await?;
            ensure(again.is_ok(), || format!("parking what is parked fails: {again:?}"))?;
            for round in ["woken", "woken again"] {
                let woken = bench.within("the order to wake", bench.runtime().wake(id)).await?;
                ensure(woken.as_ref() == Ok(&loaded), || format!("it was loaded as {loaded:?} and {round} as {woken:?}"))?;
                bench.listed(id, Some(IndexEntry::Ready), round).await?;
                bench.answers(id, round).await?;
            }
            bench.within("the order to park", bench.runtime().park(id)).await?.map_err(|why| format!("it is not parked a second time: {why}"))?;
            let loaded_again = bench.load(&model).await?;
            let entry = bench.entry(id).await?;
            ensure(loaded_again == loaded && entry == Some(IndexEntry::Ready), || format!("a load of a parked model leaves it {}", shown(entry)))?;
            bench.within("the order to park", bench.runtime().park(id)).await?.map_err(|why| format!("it is not parked a third time: {why}"))?;
            bench.unload(id).await?;
            bench.listed(id, None, "once it was unloaded as it slept").await
        }
    }
}
