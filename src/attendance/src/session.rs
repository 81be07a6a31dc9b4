//! One stream at the controller: what the agent says is taken in, what it is to know is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use berth_controller::Pod;
use berth_proto::attendance::from_agent::Said;
use berth_proto::attendance::{Beat, FromAgent, FromController, Hello, Number, Reports, Welcome, from_controller};
use berth_registry::View;
use berth_types::{CopyReport, Footprint, Location, PodId};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{debug, info};

use crate::hub::{Hub, Newcomer, Seat, at_a_time};
use crate::wire::{self, Parts};
use crate::{GREETED_WITHIN, SILENT_AFTER, WAITING};

/// What goes to an agent.
pub(crate) type ToAgent = BoxStream<'static, Result<FromController, Status>>;

impl Hub {
    /// Takes in an agent that brings this stream.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what is no agent, `FAILED_PRECONDITION` for one that follows another controller, `UNAVAILABLE` while
    /// this one begins.
    pub(crate) async fn attend(&self, mut said: impl Stream<Item = Result<FromAgent, Status>> + Send + Unpin + 'static) -> Result<ToAgent, Status> {
        let deadline = self.clock().deadline_in(GREETED_WITHIN);
        let first = self.clock().until(deadline, said.next()).await.flatten().transpose()?;
        let Some(FromAgent { said: Some(Said::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("an agent begins with who it is"));
        };
        let newcomer = newcomer(hello)?;
        let epoch = self.views().current().number().0;
        if newcomer.epoch > epoch {
            let why = format!(
                "the agent follows a controller of epoch {}, this one is of epoch {epoch}: another one leads by now; where this one was restored from an \
                 older state, remove DATA/agent/view of the agent and start it anew",
                newcomer.epoch
            );
            return Err(Status::failed_precondition(why));
        }
        if self.controller().is_none() || self.has_ended() {
            return Err(Status::unavailable("the controller is starting, or ending"));
        }
        let seat = Arc::new(self.seat(newcomer).await);
        let (tell, told) = mpsc::channel(WAITING);
        let beats = Arc::<Notify>::default();
        let (introduced, is_introduced) = oneshot::channel();
        let hears = hear(Arc::clone(&seat), said, Arc::clone(&beats), introduced);
        let speaks = speak(Arc::clone(&seat), tell.clone(), epoch, (beats, is_introduced));
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = hears => ended,
                ended = speaks => ended,
                () = seat.ended.cancelled() => Err(match seat.hub().has_ended() {
                    true => Status::unavailable("the controller ends"),
                    false => Status::aborted(
                        "another stream of this agent has begun: where that is another process, remove DATA/agent/id of one of them and start it anew",
                    ),
                }),
            };
            match ended {
                Ok(()) => debug!(pod = %seat.pod, "the stream of an agent has ended"),
                Err(why) => {
                    info!(pod = %seat.pod, error = %why.message(), "the stream of an agent ends");
                    let _ = tell.try_send(Err(why));
                }
            }
        });
        Ok(ReceiverStream::new(told).boxed())
    }
}

fn newcomer(hello: Hello) -> Result<Newcomer, Status> {
    let Hello { pod, location, runtime, budget, loads_at_a_time, epoch, version, room } = hello;
    let id = PodId::new(&pod).map_err(|fault| Status::invalid_argument(format!("the agent's identity: {fault}")))?;
    let budget: Footprint = wire::read("the agent's memory", &budget)?;
    debug!(pod = %id, version, "an agent greets");
    let free = wire::read("the agent's free memory", &room)?;
    let pod = Pod { id, runtime: runtime.into(), free, budget, loads_at_a_time: at_a_time(loads_at_a_time) };
    Ok(Newcomer { pod, location: Location::of_pod_name(&location), epoch })
}

/// Takes in what the agent says until it says no more. `introduced` is told when all that it held at first counts.
async fn hear(
    seat: Arc<Seat>,
    mut said: impl Stream<Item = Result<FromAgent, Status>> + Send + Unpin,
    beats: Arc<Notify>,
    introduced: oneshot::Sender<()>,
) -> Result<(), Status> {
    let mut introduced = Some(introduced);
    let clock = seat.hub().clock().clone();
    // The models of the first reports, until all of them have come.
    let mut all = Some(BTreeSet::new());
    loop {
        let next = clock.until(clock.deadline_in(SILENT_AFTER), said.next()).await;
        let Some(next) = next.ok_or_else(|| Status::deadline_exceeded(format!("it has said nothing for {SILENT_AFTER:?}")))? else {
            return Ok(());
        };
        match next?.said {
            Some(Said::Hello(_)) => return Err(Status::invalid_argument("an agent says once who it is")),
            Some(Said::Reports(Reports { copies, complete })) => {
                let copies = copies.iter().map(|copy| wire::read::<CopyReport>("a report", copy)).collect::<Result<Vec<_>, _>>()?;
                if let Some(all) = &mut all {
                    all.extend(copies.iter().map(|copy| copy.model.clone()));
                }
                let first = if complete { all.take() } else { None };
                seat.report(copies, first.as_ref()).await;
                if let Some(introduced) = introduced.take_if(|_| first.is_some()) {
                    if let Some(controller) = seat.hub().controller() {
                        controller.turned().await;
                    }
                    let _ = introduced.send(());
                }
            }
            Some(Said::Room(free)) => seat.has_room(wire::read("the agent's free memory", &free)?).await,
            Some(Said::Suspicions(suspicions)) => seat.suspects(wire::read("what the agent suspects", &suspicions)?).await,
            Some(Said::Seen(Number { epoch, sequence })) => seat.has_seen((epoch, sequence)),
            Some(Said::Beat(Beat {})) => beats.notify_one(),
            Some(Said::Leaving(_)) => {
                seat.leave().await;
                return Ok(());
            }
            // Of a later release.
            None => {}
        }
    }
}

/// Tells the agent what it is to know, until it listens no more.
async fn speak(
    seat: Arc<Seat>,
    tell: mpsc::Sender<Result<FromController, Status>>,
    epoch: u64,
    (beats, mut introduced): (Arc<Notify>, oneshot::Receiver<()>),
) -> Result<(), Status> {
    use from_controller::Said;

    let say = async |said: Said| tell.send(Ok(FromController { said: Some(said) })).await.map_err(|_gone| Status::cancelled("it listens no more"));
    let hub = seat.hub();
    let (mut numbers, mut suspicions) = (hub.views().numbers(), hub.suspicions());
    say(Said::Welcome(Welcome { epoch })).await?;
    // A view in which it does not count yet would have it refuse what nobody else serves.
    loop {
        tokio::select! {
            told = &mut introduced => match told {
                Ok(()) => break,
                Err(_ended) => return std::future::pending().await,
            },
            () = beats.notified() => say(Said::Beat(Beat {})).await?,
            () = tell.closed() => return Ok(()),
        }
    }
    // What an earlier stream told counts until it is told otherwise.
    let mut told_cautions = None;
    let mut known = None;
    loop {
        numbers.mark_unchanged();
        suspicions.mark_unchanged();
        // Before any order that may come of it.
        let cautions = hub.cautions(&seat.pod);
        if told_cautions.as_ref() != Some(&cautions) {
            say(Said::Cautions(wire::json(&cautions)?)).await?;
            told_cautions = Some(cautions);
        }
        loop {
            let orders = seat.orders.take()?;
            // Behind the view that they follow from: what is retired has left it before.
            let view = hub.views().current();
            // A picture that is not complete yet is no reason to give up a complete one.
            if view.is_ready() && known.as_ref().is_none_or(|known: &Arc<View>| known.number() != view.number()) {
                let mut parts = Parts::of(&view, known.as_deref());
                while let Some(part) = parts.next()? {
                    say(Said::View(part)).await?;
                }
                known = Some(view);
            }
            if orders.is_empty() {
                break;
            }
            for order in orders {
                tell.send(Ok(order)).await.map_err(|_gone| Status::cancelled("it listens no more"))?;
            }
        }
        tokio::select! {
            _ = numbers.changed() => {}
            _ = suspicions.changed() => {}
            () = seat.orders.ring.notified() => {}
            () = beats.notified() => say(Said::Beat(Beat {})).await?,
            () = tell.closed() => return Ok(()),
        }
    }
}
