//! The thread on which foreign ELF files are parsed: a file that makes the parser panic or run for ever costs
//! the answers for that file, and this thread.

use std::collections::HashMap;
use std::io;
use std::panic;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use super::SymbolizeError;
use super::prepared::{Answer, KeptObject, Prepared};
use crate::model::ObjectId;

#[cfg(not(panic = "unwind"))]
compile_error!("offheap survives crafted ELF files by catching panics: build it with panic = \"unwind\"");

const THREAD_NAME: &str = "offheap-symbols";
/// Objects kept ready. Each has its file mapped and an index of its symbols.
const MAX_PREPARED: usize = 16;
/// blazesym walks nested scopes recursively. Untouched stack costs nothing.
const STACK_BYTES: usize = 256 << 20;

/// A batch of lookups in one object. Answers come one by one, in order.
struct Job {
    id: ObjectId,
    object: Arc<KeptObject>,
    file_offsets: Vec<u64>,
    answers: Sender<Result<Answer, SymbolizeError>>,
}

/// A running worker thread, which ends after its current batch when this is dropped.
pub(super) struct Worker {
    jobs: Sender<Job>,
}

impl Worker {
    pub fn start() -> io::Result<Self> {
        keep_quiet_about_panics();
        let (jobs, inbox) = mpsc::channel();
        thread::Builder::new()
            .name(THREAD_NAME.into())
            .stack_size(STACK_BYTES)
            .spawn(move || work(&inbox))?;
        Ok(Self { jobs })
    }

    /// Looks the offsets up, handing each answer to `take` as it comes. An error means that the rest of them
    /// has no answer; after [`SymbolizeError::TimedOut`] the worker is busy for ever and is to be dropped.
    pub fn run(
        &self,
        id: ObjectId,
        object: &Arc<KeptObject>,
        file_offsets: &[u64],
        deadline: Duration,
        mut take: impl FnMut(u64, Answer),
    ) -> Result<(), SymbolizeError> {
        let (answers, replies) = mpsc::channel();
        let job = Job { id, object: Arc::clone(object), file_offsets: file_offsets.to_vec(), answers };
        self.jobs.send(job).map_err(|_| SymbolizeError::NoWorker(None))?;
        for &file_offset in file_offsets {
            match replies.recv_timeout(deadline) {
                Ok(answer) => take(file_offset, answer?),
                Err(RecvTimeoutError::Timeout) => return Err(SymbolizeError::TimedOut(deadline)),
                Err(RecvTimeoutError::Disconnected) => return Err(SymbolizeError::NoWorker(None)),
            }
        }
        Ok(())
    }
}

fn work(inbox: &Receiver<Job>) {
    let mut ready: HashMap<ObjectId, (u64, Prepared)> = HashMap::new();
    for (now, job) in (0..).zip(inbox.iter()) {
        if let Err(error) = answer_all(&job, now, &mut ready) {
            // Nobody waits any more if this fails.
            let _ = job.answers.send(Err(error));
        }
    }
}

fn answer_all(
    job: &Job,
    now: u64,
    ready: &mut HashMap<ObjectId, (u64, Prepared)>,
) -> Result<(), SymbolizeError> {
    if !ready.contains_key(&job.id) {
        let prepared = panic::catch_unwind(panic::AssertUnwindSafe(|| Prepared::open(&job.object)))
            .map_err(|_| SymbolizeError::Panicked("while the headers were read".into()))??;
        if ready.len() >= MAX_PREPARED
            && let Some(oldest) = ready.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id)
        {
            ready.remove(&oldest);
        }
        ready.insert(job.id, (now, prepared));
    }
    let Some((used, prepared)) = ready.get_mut(&job.id) else { return Ok(()) };
    *used = now;
    for &file_offset in &job.file_offsets {
        if job.answers.send(Ok(prepared.lookup(file_offset))).is_err() {
            break;
        }
    }
    Ok(())
}

/// A panic on the worker is reported as a problem of the object, not on the terminal.
fn keep_quiet_about_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some(THREAD_NAME) {
                log::debug!("{info}");
            } else {
                previous(info);
            }
        }));
    });
}
