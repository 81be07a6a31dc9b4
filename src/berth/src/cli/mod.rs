//! The commands of a person or a script that talk to a running server: `apply`, `get`, `describe`, `delete`, `infer`, `wait`.
//!
//! They speak the resource API and nothing else, so that they work against everything that does, and they keep kubectl's
//! habits: its words, columns, messages and exit statuses. Answers are read member by member, so a newer server breaks
//! nothing here. Every request has a deadline; a watch outlives its connections; a reader that has gone ends a command
//! quietly. What a command can end with is a [`fault::Fault`].

mod age;
mod apply;
mod args;
mod client;
mod describe;
mod downloads;
mod drifts;
mod fault;
mod get;
mod infer;
mod kinds;
mod manifest;
mod memory;
pub(crate) mod output;
mod resource;
mod table;
#[cfg(test)]
mod testing;
mod tls;
mod wait;
mod watch;

use std::process::ExitCode;

use berth_telemetry::Clock;

pub(crate) use self::args::ClientCommand;
use self::args::ServerArgs;
use self::client::{Client, Server};
use self::fault::Fault;
use self::output::{Out, note};

/// Runs `command`; `program` is the whole command line, for its completions.
pub(crate) fn run(command: &ClientCommand, program: clap::Command) -> ExitCode {
    match carry_out(command, program, &mut Out::stdout()) {
        Ok(()) | Err(Fault::PipeClosed) => ExitCode::SUCCESS,
        Err(fault) => {
            note(&fault.to_string());
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: &ClientCommand, program: clap::Command, out: &mut Out) -> Result<(), Fault> {
    match command {
        ClientCommand::Apply(args) => on(&args.server, async |client| apply::apply(client, args, out).await),
        ClientCommand::Get(args) => on(&args.server, async |client| get::get(client, args, out).await),
        ClientCommand::Describe(args) => on(&args.server, async |client| get::describe_all(client, args, out).await),
        ClientCommand::Top(args) => on(&args.server, async |client| memory::top(client, out).await),
        ClientCommand::Delete(args) => on(&args.server, async |client| apply::delete(client, args, out).await),
        ClientCommand::Infer(args) => on(&args.server, async |client| infer::infer(client, args, out).await),
        ClientCommand::Wait(args) => on(&args.server, async |client| wait::wait(client, args, out).await),
        ClientCommand::Completion(args) => completion(args, program, out),
    }
}

/// Does `work` with a client of that server.
fn on(server: &ServerArgs, work: impl AsyncFnOnce(&Client) -> Result<(), Fault>) -> Result<(), Fault> {
    let api = Server::parse(server.server(), "--server")?.with_token(server.token()?.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|fault| Fault::local(format!("cannot begin: {fault}")))?;
    let client = Client::new(api, Clock::system());
    runtime.block_on(work(&client))
}

fn completion(args: &args::Completion, mut program: clap::Command, out: &mut Out) -> Result<(), Fault> {
    let name = program.get_name().to_owned();
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    out.bytes(&script)
}
