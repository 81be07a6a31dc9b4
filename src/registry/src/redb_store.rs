//! The store on disk.
//!
//! One thread owns the database file. It takes whatever writes are waiting, works them out into one draft, commits that
//! with one synced transaction, and only then shows it and answers. So a write is durable when it returns, nobody sees
//! what a crash could take back, and many writers share one sync of the disk. Statuses are written the same way: they
//! could be derived again, but a status that was seen and then steps back would not be true to who watched it.
//!
//! Reads come from memory; the file is read once, when it is opened. Only contents are read from it when somebody asks:
//! nobody does but a leader that starts, and a digest per model in memory would serve nobody else.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use berth_telemetry::Clock;
use berth_types::{ContentDigest, ModelId, ParseContentDigestError};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::lock::DataLock;
use crate::managed::ManagedState;
use crate::shelved::Shelved;
use crate::state::{Beginning, Draft, Outcome, Shelf, Write};
use crate::{Alias, Contents, Object, ObjectKey, StoreError};

/// The name of the database file in the data folder.
const NAME: &str = "registry.redb";
/// The layout of the tables below. Another number is another program's file.
const FORMAT: u64 = 1;
/// Writes that wait for the disk; a writer beyond them waits for a place.
const QUEUE: usize = 1_024;

/// Bytes of the file that the database may keep in memory. Everything is read from the file once; what is written later
/// touches few pages.
const CACHE: usize = 16 << 20;

/// Key of a row: kind, namespace (empty for cluster-wide kinds), name.
type Row<'r> = (&'r str, &'r str, &'r str);
/// `format`, `epoch`, `version`, `identity`.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// An [`Object`] as JSON.
const OBJECTS: TableDefinition<Row<'static>, &[u8]> = TableDefinition::new("objects");
/// Pair of an [`ObjectKey`] and an [`Alias`] as JSON.
const ALIASES: TableDefinition<Row<'static>, &[u8]> = TableDefinition::new("aliases");
/// Pair of an [`ObjectKey`] and its [`Contents`] as JSON. Not there in files of earlier releases.
const CONTENTS: TableDefinition<Row<'static>, &[u8]> = TableDefinition::new("contents");
/// A [`ManagedModel`] as JSON, by its id. Not there in files of earlier releases.
const MODELS: TableDefinition<&str, &[u8]> = TableDefinition::new("managed-models");
/// A [`ManagedName`] as JSON, by itself. Not there in files of earlier releases.
const NAMES: TableDefinition<&str, &[u8]> = TableDefinition::new("managed-names");

/// [`Contents`] without the digests of other releases: those count as never made.
#[derive(Deserialize)]
#[serde(try_from = "BTreeMap<ModelId, String>")]
struct Known(Contents);

impl TryFrom<BTreeMap<ModelId, String>> for Known {
    type Error = ParseContentDigestError;

    fn try_from(kept: BTreeMap<ModelId, String>) -> Result<Self, ParseContentDigestError> {
        let known = kept.into_iter().filter(|(_, digest)| !ContentDigest::is_of_another_release(digest));
        known.map(|(model, digest)| Ok((model, digest.parse()?))).collect::<Result<_, _>>().map(Known)
    }
}

fn row(key: &ObjectKey) -> Row<'_> {
    (key.kind.as_str(), key.namespace.as_ref().map_or("", |namespace| namespace.as_str()), key.name.as_str())
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data folder {} is in use by {}: stop that process, or choose another folder", dir.display(), who(*process))]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// The other process, where it left its id.
        process: Option<u32>,
    },
    /// The folder cannot be made, read or written.
    #[error("data folder {}: {fault}: check that it is a folder that this user may write, with space left", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        fault: io::Error,
    },
    /// The database in it cannot be read.
    #[error("{}: {fault}: restore a copy of it, or move it away to start without resources (those of a watched folder are read again)", file.display())]
    File {
        /// The database.
        file: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
}

fn who(process: Option<u32>) -> String {
    process.map_or_else(|| "another process".to_owned(), |id| format!("process {id}"))
}

/// Desired state on disk, in `registry.redb` of a data folder that this process alone uses.
pub struct RedbStore {
    shelf: Arc<Shelf>,
    writes: Option<mpsc::Sender<(Write, oneshot::Sender<Outcome>)>>,
    writer: Option<JoinHandle<()>>,
    files: Arc<Files>,
}

/// What is open while anybody reads or writes.
struct Files {
    database: Database,
    file: PathBuf,
    // Last, so that the folder is given back when the database is closed.
    _lock: DataLock,
}

impl RedbStore {
    /// Opens the store in `data_dir`, making both where they are missing, and raises the epoch. Blocks; for the start of a
    /// program.
    ///
    /// # Errors
    /// [`OpenError`]: somebody else uses the folder, it cannot be written, or its file is damaged or not ours.
    pub fn open(data_dir: &Path, clock: Clock) -> Result<Self, OpenError> {
        let in_folder = |fault| OpenError::Folder { dir: data_dir.to_owned(), fault };
        std::fs::create_dir_all(data_dir).map_err(in_folder)?;
        let lock = DataLock::take(data_dir)?;
        let file = data_dir.join(NAME);
        let (database, beginning) = open(&file, data_dir, &clock).map_err(|fault| OpenError::File { file: file.clone(), fault })?;
        let shelf = Arc::new(Shelf::new(beginning));
        let (writes, queue) = mpsc::channel(QUEUE);
        let files = Arc::new(Files { database, file, _lock: lock });
        let owner = Writer { shelf: Arc::clone(&shelf), files: Arc::clone(&files), clock };
        let writer = std::thread::Builder::new().name("registry-writer".to_owned()).spawn(move || owner.run(queue)).map_err(in_folder)?;
        Ok(RedbStore { shelf, writes: Some(writes), writer: Some(writer), files })
    }
}

impl Drop for RedbStore {
    /// Waits for the writes that were handed over, and closes the file.
    fn drop(&mut self) {
        drop(self.writes.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.shelf.close();
    }
}

/// Opens or makes the database, raises the epoch durably and reads everything.
fn open(file: &Path, data_dir: &Path, clock: &Clock) -> Result<(Database, Beginning), String> {
    let database = Database::builder().set_cache_size(CACHE).create(file).map_err(|fault| format!("cannot open this database: {fault}"))?;
    let fault = |fault: redb::Error| format!("cannot read this database: {fault}");
    let transaction = begin(&database).map_err(fault)?;
    let meta = raise_epoch(&transaction, data_dir, clock)?;
    transaction.commit().map_err(|cause| fault(cause.into()))?;
    let (objects, aliases, managed) = read_all(&database)?;
    let [epoch, version, identity] = meta;
    Ok((database, Beginning { objects, aliases, managed, version, epoch, identity }))
}

fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    Ok(transaction)
}

/// Checks whose file it is and counts this opening. Gives epoch, version and identity.
fn raise_epoch(transaction: &WriteTransaction, data_dir: &Path, clock: &Clock) -> Result<[u64; 3], String> {
    let fault = |fault: redb::Error| format!("cannot read this database: {fault}");
    let tables: Vec<String> = transaction.list_tables().map_err(|cause| fault(cause.into()))?.map(|table| table.name().to_owned()).collect();
    if !tables.is_empty() && !tables.iter().any(|name| name == META.name()) {
        return Err("this is a database of another program".to_owned());
    }
    let mut meta = transaction.open_table(META).map_err(|cause| fault(cause.into()))?;
    let get = |meta: &redb::Table<'_, &str, u64>, name: &str| {
        meta.get(name).map(|value| value.map(|value| value.value())).map_err(|cause| fault(cause.into()))
    };
    match get(&meta, "format")? {
        Some(FORMAT) => {}
        None if tables.is_empty() => {}
        None => return Err("this is a database of another program".to_owned()),
        Some(other) => return Err(format!("this database has format {other}, this version of the program reads format {FORMAT}")),
    }
    let epoch = get(&meta, "epoch")?.unwrap_or(0) + 1;
    let version = get(&meta, "version")?.unwrap_or(0);
    let identity = get(&meta, "identity")?.unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        (clock.wall(), std::process::id(), data_dir).hash(&mut hasher);
        hasher.finish()
    });
    for (name, value) in [("format", FORMAT), ("epoch", epoch), ("version", version), ("identity", identity)] {
        meta.insert(name, value).map_err(|cause| fault(cause.into()))?;
    }
    Ok([epoch, version, identity])
}

/// What is in memory of a database.
type Held = (Vec<Arc<Object>>, BTreeMap<ObjectKey, Alias>, ManagedState);

fn read_all(database: &Database) -> Result<Held, String> {
    let objects = rows::<Object, _>(database, OBJECTS)?;
    let aliases = rows::<(ObjectKey, Alias), _>(database, ALIASES)?;
    let managed = ManagedState::of(rows(database, MODELS)?, rows(database, NAMES)?);
    Ok((objects.into_iter().map(Arc::new).collect(), aliases.into_iter().collect(), managed))
}

fn rows<T: serde::de::DeserializeOwned, K: redb::Key>(
    database: &Database,
    table: TableDefinition<'static, K, &'static [u8]>,
) -> Result<Vec<T>, String>
where
    for<'k> K::SelfType<'k>: std::fmt::Debug,
{
    let read = || -> Result<Vec<Result<T, String>>, redb::Error> {
        let transaction = database.begin_read()?;
        let table = match transaction.open_table(table) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(fault) => return Err(fault.into()),
        };
        let mut parsed = Vec::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            parsed.push(serde_json::from_slice(value.value()).map_err(|fault| format!("cannot read the row of {:?}: {fault}", key.value())));
        }
        Ok(parsed)
    };
    read().map_err(|fault| format!("cannot read this database: {fault}"))?.into_iter().collect()
}

/// The thread that owns the database.
struct Writer {
    shelf: Arc<Shelf>,
    files: Arc<Files>,
    clock: Clock,
}

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<(Write, oneshot::Sender<Outcome>)>) {
        let mut waiting = Vec::with_capacity(QUEUE);
        while queue.blocking_recv_many(&mut waiting, QUEUE) > 0 {
            let mut draft = Draft::default();
            let now = self.clock.wall();
            let decided: Vec<_> = waiting.drain(..).map(|(write, reply)| (self.shelf.decide(&mut draft, write, now), reply)).collect();
            let durable = if draft.is_empty() { Ok(()) } else { self.commit(&draft) };
            match durable {
                Ok(()) => {
                    self.shelf.publish(draft);
                    for (outcome, reply) in decided {
                        // Whoever no longer waits finds the outcome in the store.
                        let _ = reply.send(outcome);
                    }
                }
                Err(fault) => {
                    let text = format!("cannot write {}: {fault}: check the disk and restart the program", self.files.file.display());
                    tracing::error!(path = %self.files.file.display(), error = %fault, "registry not written");
                    for (_, reply) in decided {
                        let _ = reply.send(Err(StoreError::Broken(text.clone())));
                    }
                }
            }
        }
    }

    fn commit(&self, draft: &Draft) -> Result<(), redb::Error> {
        let transaction = begin(&self.files.database)?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for (key, object) in &draft.objects {
                match object {
                    Some(object) => drop(objects.insert(row(key), json(&**object)?.as_slice())?),
                    None => drop(objects.remove(row(key))?),
                }
            }
            let mut aliases = transaction.open_table(ALIASES)?;
            for (key, alias) in &draft.aliases {
                match alias {
                    Some(alias) => drop(aliases.insert(row(key), json(&(key, alias))?.as_slice())?),
                    None => drop(aliases.remove(row(key))?),
                }
            }
            if !draft.contents.is_empty() {
                let mut contents = transaction.open_table(CONTENTS)?;
                for (key, of) in &draft.contents {
                    if of.is_empty() {
                        drop(contents.remove(row(key))?);
                    } else {
                        drop(contents.insert(row(key), json(&(key, of))?.as_slice())?);
                    }
                }
            }
            if !draft.managed.models.is_empty() {
                let mut models = transaction.open_table(MODELS)?;
                for (id, model) in &draft.managed.models {
                    match model {
                        Some(model) => drop(models.insert(id.as_str(), json(&**model)?.as_slice())?),
                        None => drop(models.remove(id.as_str())?),
                    }
                }
            }
            if !draft.managed.names.is_empty() {
                let mut names = transaction.open_table(NAMES)?;
                for (key, name) in &draft.managed.names {
                    match name {
                        Some(name) => drop(names.insert(key.as_str(), json(&**name)?.as_slice())?),
                        None => drop(names.remove(key.as_str())?),
                    }
                }
            }
            transaction.open_table(META)?.insert("version", draft.version)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|fault| redb::Error::Io(io::Error::other(fault)))
}

impl Shelved for RedbStore {
    fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    async fn write(&self, write: Write) -> Outcome {
        let ended = || StoreError::Broken("the writer of the registry has ended: restart the program".to_owned());
        let (reply, answer) = oneshot::channel();
        let writes = self.writes.as_ref().ok_or_else(ended)?;
        writes.send((write, reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    async fn kept_contents(&self) -> Result<BTreeMap<ObjectKey, Contents>, StoreError> {
        let files = Arc::clone(&self.files);
        let read = move || rows::<(ObjectKey, Known), _>(&files.database, CONTENTS).map_err(|fault| format!("{}: {fault}", files.file.display()));
        match tokio::task::spawn_blocking(read).await {
            Ok(read) => {
                let rows = read.map_err(StoreError::Broken)?.into_iter().map(|(key, Known(contents))| (key, contents));
                Ok(rows.filter(|(_, contents)| !contents.is_empty()).collect())
            }
            Err(fault) => Err(StoreError::Broken(format!("reading contents: {fault}"))),
        }
    }
}
