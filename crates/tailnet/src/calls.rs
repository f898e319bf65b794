//! The threads that call into Go.
//!
//! Invariants
//! - Only these threads enter Go: few, named, started when first needed, never ended. (A thread
//!   that has called into Go carries state of Go's runtime, and tokio's own threads come and go.)
//! - A panic in the work becomes an [`Error::Internal`] of that call; the thread goes on.
//! - Calls that return at once never wait behind calls that may take seconds: each kind has its own
//!   [`CallThreads`].
//! - Work whose caller has gone is skipped, unless it was submitted with [`CallThreads::detach`].

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::Error;

/// Calls that only look something up or make a descriptor.
pub(super) static QUICK: CallThreads = CallThreads::new(3);
/// Calls that may take seconds: start, logout, close. Enough threads that many nodes can be closed
/// within one time limit.
pub(super) static SLOW: CallThreads = CallThreads::new(12);

static STARTED_THREADS: AtomicUsize = AtomicUsize::new(0);

type Job = Box<dyn FnOnce() + Send>;

/// A queue and the threads that serve it.
pub(super) struct CallThreads {
    max_threads: usize,
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl CallThreads {
    const fn new(max_threads: usize) -> Self {
        Self {
            max_threads,
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                threads: 0,
                idle: 0,
            }),
            wake: Condvar::new(),
        }
    }

    /// Runs the work on one of the lane's threads. Dropping the future drops the result, and the
    /// work too if it has not begun.
    pub(super) async fn run<T, F>(&'static self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Error> + Send + 'static,
    {
        let (answer, waiting) = oneshot::channel();
        self.submit(Box::new(move || {
            if !answer.is_closed() {
                // If the caller has gone meanwhile, dropping the result here closes what it holds.
                drop(answer.send(catch_panic(work)));
            }
        }))?;
        waiting
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a call into the node was lost".into())))
    }

    /// Runs the work whether or not anybody waits for it.
    pub(super) fn detach<F>(&'static self, work: F)
    where
        F: FnOnce() -> Result<(), Error> + Send + 'static,
    {
        let outcome = self.submit(Box::new(|| {
            if let Err(error) = catch_panic(work) {
                tracing::warn!(%error, "a call into the node failed");
            }
        }));
        if let Err(error) = outcome {
            tracing::error!(%error, "a call into the node could not be made");
        }
    }

    fn submit(&'static self, job: Job) -> Result<(), Error> {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.threads < self.max_threads {
            let number = STARTED_THREADS.fetch_add(1, Ordering::Relaxed);
            let spawned = thread::Builder::new()
                .name(format!("tailnet-go-{number}"))
                .spawn(|| self.serve());
            match spawned {
                Ok(_) => queue.threads += 1,
                // The existing threads will get to it.
                Err(_) if queue.threads > 0 => {}
                Err(error) => {
                    queue.jobs.pop_back();
                    return Err(Error::Io(format!(
                        "no thread for calls into the node: {error}"
                    )));
                }
            }
        }
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn serve(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock();
            } else {
                queue.idle += 1;
                self.wake.wait(&mut queue);
                queue.idle -= 1;
            }
        }
    }
}

/// Runs the work; a panic becomes an error.
fn catch_panic<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::Internal(format!(
            "panic: {}",
            panic_message(panic.as_ref())
        )))
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no words)")
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_goes_on() {
        static THREADS_UNDER_TEST: CallThreads = CallThreads::new(1);
        let panicked = THREADS_UNDER_TEST
            .run(|| -> Result<(), Error> { panic!("on purpose {}", 7) })
            .await;
        assert!(
            matches!(&panicked, Err(Error::Internal(panic_message)) if panic_message == "panic: on purpose 7"),
            "{panicked:?}"
        );
        let name = THREADS_UNDER_TEST
            .run(|| Ok(thread::current().name().map(str::to_owned)))
            .await
            .unwrap();
        assert!(name.unwrap().starts_with("tailnet-go-"));
        assert_eq!(THREADS_UNDER_TEST.queue.lock().threads, 1);
    }

    #[tokio::test]
    async fn work_without_a_waiter_is_skipped_unless_detached() {
        static THREADS_UNDER_TEST: CallThreads = CallThreads::new(1);
        let (release, held) = mpsc::channel::<()>();
        THREADS_UNDER_TEST.detach(move || {
            held.recv().ok();
            Ok(())
        });
        let ran = Arc::new(AtomicUsize::new(0));
        let skipped = {
            let ran = Arc::clone(&ran);
            THREADS_UNDER_TEST.run(move || {
                ran.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        };
        assert!(
            tokio::time::timeout(Duration::from_millis(20), skipped)
                .await
                .is_err()
        );
        {
            let ran = Arc::clone(&ran);
            THREADS_UNDER_TEST.detach(move || {
                ran.fetch_add(10, Ordering::SeqCst);
                Ok(())
            });
        }
        release.send(()).unwrap();
        THREADS_UNDER_TEST.run(|| Ok(())).await.unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 10);
    }

    #[tokio::test]
    async fn a_lane_has_no_more_threads_than_its_limit() {
        static THREADS_UNDER_TEST: CallThreads = CallThreads::new(2);
        let all = (0..50).map(|_| {
            THREADS_UNDER_TEST.run(|| {
                thread::sleep(Duration::from_millis(1));
                Ok(())
            })
        });
        for done in futures_util::future::join_all(all).await {
            done.unwrap();
        }
        assert_eq!(THREADS_UNDER_TEST.queue.lock().threads, 2);
    }
}
