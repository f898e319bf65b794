//! Polls the future that serves a connection on Go's thread, in the turn that brought the bytes it
//! waits for.
//!
//! Invariants
//! - The future belongs to a tokio task (its [`InPlaceTask`]), so it ends, panics and is cancelled
//!   as any task does.
//! - One thread polls it at a time. A thread that finds it being polled sets a flag; the poller
//!   then polls again. No wake is lost.
//! - A future woken inside [`batch_wakeups`](super::batch_wakeups) is polled by a turn that is
//!   certain to come. If none is, tokio polls it.
//! - A turn polls only a future that was woken, and at most [`MAX_POLLS`] times; tokio does the
//!   rest. Go bounds how many turns run at a time, since each of them occupies a thread.
//! - A panic never leaves a turn; it is passed on to the task.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{future::BoxFuture, task::AtomicWaker};
use parking_lot::Mutex;
use tokio::runtime::Handle;

/// How often one turn polls a future that keeps waking itself.
const MAX_POLLS: usize = 8;

/// Not woken and not being polled.
const IDLE: u8 = 0;
/// Woken; the task or a turn will poll it.
const WOKEN: u8 = 1;
const POLLED: u8 = 2;
/// Being polled, and woken again since the poll began.
const POLLED_AND_WOKEN: u8 = 3;
const DONE: u8 = 4;

/// Returns true if a turn that has not begun yet will poll the future just woken.
type Promise = dyn Fn(&Arc<PolledInPlace>) -> bool + Send + Sync;

/// A future that turns may poll, and the state that decides who polls it.
pub(super) struct PolledInPlace {
    /// One of the constants above.
    state: AtomicU8,
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Wakes the tokio task that owns the future.
    task: AtomicWaker,
    promise_turn: Box<Promise>,
    runtime: Handle,
}

/// The right to poll, held until dropped.
pub(super) struct PollGuard<'a>(&'a Arc<PolledInPlace>);

/// The tokio task that owns the future.
pub(super) struct InPlaceTask(Arc<PolledInPlace>);

impl InPlaceTask {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(
        future: BoxFuture<'static, ()>,
        promise_turn: impl Fn(&Arc<PolledInPlace>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(PolledInPlace {
            state: AtomicU8::new(WOKEN),
            future: Mutex::new(Some(future)),
            panic: Mutex::new(None),
            task: AtomicWaker::new(),
            promise_turn: Box::new(promise_turn),
            runtime: Handle::current(),
        }))
    }

    pub(super) fn future(&self) -> Arc<PolledInPlace> {
        Arc::clone(&self.0)
    }
}

impl PolledInPlace {
    /// Takes the right to poll, for a turn. `None`: another thread is polling it and will see any
    /// new wake.
    pub(super) fn acquire(self: &Arc<Self>) -> Option<PollGuard<'_>> {
        let acquired = self.transition(IDLE, POLLED) || self.transition(WOKEN, POLLED_AND_WOKEN);
        // Not `then_some`: it would build the `PollGuard` in either case, and dropping that
        // releases another thread's right.
        acquired.then(|| PollGuard(self))
    }

    /// No further turn comes: a future that relied on one is polled by tokio.
    pub(super) fn no_more_turns(&self) {
        self.task.wake();
    }

    /// Polls once. The caller must have the right to.
    fn poll(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let mut slot = self.future.lock();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(future) = slot.as_mut()
                && future.as_mut().poll(&mut cx).is_ready()
            {
                *slot = None;
            }
        }));
        if let Err(panic) = outcome {
            *self.panic.lock() = Some(panic);
            let broken = slot.take();
            // Dropping what is left of the future may panic as well.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        }
        if slot.is_none() {
            self.state.store(DONE, Ordering::Release);
        }
    }

    fn transition(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl PollGuard<'_> {
    /// Polls while the future has been woken, at most [`MAX_POLLS`] times.
    pub(super) fn run(&mut self) {
        for _ in 0..MAX_POLLS {
            if !self.0.transition(POLLED_AND_WOKEN, POLLED) {
                return;
            }
            let _runtime = self.0.runtime.enter();
            self.0.poll();
        }
    }
}

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        if self.0.transition(POLLED, IDLE) {
            return;
        }
        self.0.transition(POLLED_AND_WOKEN, WOKEN);
        self.0.task.wake();
    }
}

impl Wake for PolledInPlace {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            let state = self.state.load(Ordering::Acquire);
            let (next, wake_task) = match state {
                IDLE => (WOKEN, true),
                POLLED => (POLLED_AND_WOKEN, false),
                _ => return,
            };
            if self.transition(state, next) {
                if wake_task && !(self.promise_turn)(self) {
                    self.task.wake();
                }
                return;
            }
        }
    }
}

impl Future for InPlaceTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let future = &self.0;
        future.task.register(cx.waker());
        if future.transition(WOKEN, POLLED) {
            future.poll();
            if !future.transition(POLLED, IDLE) && future.transition(POLLED_AND_WOKEN, WOKEN) {
                // Let other tasks run first, as any task that wakes itself does.
                cx.waker().wake_by_ref();
            }
        }
        if future.state.load(Ordering::Acquire) != DONE {
            return Poll::Pending;
        }
        if let Some(panic) = future.panic.lock().take() {
            resume_unwind(panic);
        }
        Poll::Ready(())
    }
}

impl Drop for InPlaceTask {
    fn drop(&mut self) {
        // The lock waits for a turn that is polling right now.
        let mut slot = self.0.future.lock();
        let future = slot.take();
        self.0.state.store(DONE, Ordering::Release);
        drop(slot);
        drop(future);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Weak,
            atomic::{AtomicBool, AtomicUsize},
            mpsc::channel,
        },
        thread::{self, ThreadId},
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
        task::JoinHandle,
    };

    use super::{
        super::{
            InboundState, SharedBuffer, batch_wakeups,
            tests::{connection, kicks},
        },
        *,
    };
    use crate::Stream;

    /// A task that serves a stream, after the connection was read once and had nothing.
    async fn serving<F>(future: impl FnOnce(Stream) -> F) -> (Arc<SharedBuffer>, JoinHandle<()>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (shared, stream) = connection();
        let wrap = stream.poll_in_place().unwrap();
        let task = tokio::spawn(wrap(Box::pin(future(stream))));
        while shared
            .in_place()
            .is_none_or(|i| i.state.load(Ordering::Acquire) != IDLE)
        {
            tokio::task::yield_now().await;
        }
        (shared, task)
    }

    /// A turn on a thread of its own, as Go does it.
    fn turn(shared: &Arc<SharedBuffer>, input: &'static [u8]) -> (Vec<u8>, ThreadId) {
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let mut out = vec![0; 100];
            let result = shared.turn(input, InboundState::Open, &mut out);
            out.truncate(result.sent);
            (out, thread::current().id())
        })
        .join()
        .unwrap()
    }

    async fn echo(mut stream: Stream, heard: std::sync::mpsc::Sender<ThreadId>) {
        let mut bytes = [0; 100];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            let _ = heard.send(thread::current().id());
            stream.write_all(bytes.get(..n).unwrap()).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_answer_leaves_in_the_turn_that_brought_its_request() {
        let (result, heard) = channel();
        let (shared, _task) = serving(|stream| echo(stream, result)).await;
        for _ in 0..3 {
            let (out, on) = turn(&shared, b"ping");
            assert_eq!(out, b"ping");
            assert_eq!(heard.recv().unwrap(), on);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_turn_has_the_runtime_and_wakes_outside_turns_go_to_tokio() {
        let (shared, task) = serving(|mut stream| async move {
            stream.read_u8().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            stream.write_all(b"late").await.unwrap();
        })
        .await;
        assert_eq!(turn(&shared, b"x").0, b"");
        task.await.unwrap();
        assert_eq!(turn(&shared, b"").0, b"late");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tasks_woken_in_a_batch_are_polled_in_the_turn_they_request() {
        let (tell, result) = tokio::sync::oneshot::channel();
        let (polled, on) = channel();
        let (shared, task) = serving(|mut stream| async move {
            let word: &[u8] = result.await.unwrap();
            let _ = polled.send(thread::current().id());
            stream.write_all(word).await.unwrap();
        })
        .await;
        batch_wakeups(|| tell.send(b"word").unwrap());
        assert_eq!(kicks(&shared), 1);
        assert!(on.try_recv().is_err(), "polled before its turn");
        let (out, thread) = turn(&shared, b"");
        assert_eq!(out, b"word");
        assert_eq!(on.recv().unwrap(), thread);
        task.await.unwrap();
    }

    /// A turn that found the future being polled, and is still running when tokio has finished
    /// polling, will not poll again. So it must not be promised.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_turn_that_has_begun_is_not_promised() {
        type Late = Box<dyn FnOnce() + Send>;
        struct Within(Mutex<Option<Late>>);
        impl Wake for Within {
            fn wake(self: Arc<Self>) {
                let late = self.0.lock().take();
                late.into_iter().for_each(|late| late());
            }
        }
        let within = Arc::new(Within(Mutex::new(None)));
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (tell, result) = tokio::sync::oneshot::channel();
        let (hold, held) = channel::<()>();
        let (release, released) = channel::<()>();
        let waker = Waker::from(within.clone());
        let (shared, task) = serving(|mut stream| async move {
            // The buffer is full, so the turn makes room in it and wakes the writer.
            stream.write_all(&[0; 64 << 10]).await.unwrap();
            let full = Pin::new(&mut stream)
                .poll_write(&mut Context::from_waker(&waker), b"x")
                .is_pending();
            assert!(full);
            begun.await.unwrap();
            hold.send(()).unwrap();
            released.recv().unwrap();
            result.await.unwrap();
        })
        .await;
        let in_place = Arc::clone(shared.in_place().unwrap());
        *within.0.lock() = Some(Box::new(move || {
            assert_eq!(in_place.state.load(Ordering::Acquire), POLLED);
            release.send(()).unwrap();
            while in_place.state.load(Ordering::Acquire) != IDLE {
                thread::yield_now();
            }
            batch_wakeups(|| tell.send(()).unwrap());
        }));
        begin.send(()).unwrap();
        held.recv().unwrap();
        assert_eq!(turn(&shared, b"").0.len(), 100);
        let ended = tokio::time::timeout(Duration::from_secs(20), task).await;
        ended.expect("the promised turn was over").unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_further_turns_tokio_polls_the_task() {
        for freed_before in [true, false] {
            let (tell, result) = tokio::sync::oneshot::channel();
            let (shared, task) = serving(|stream| async move {
                result.await.unwrap();
                drop(stream);
            })
            .await;
            if freed_before {
                shared.freed();
            }
            batch_wakeups(|| tell.send(()).unwrap());
            assert_eq!(kicks(&shared), usize::from(!freed_before));
            if !freed_before {
                shared.freed();
            }
            let ended = tokio::time::timeout(Duration::from_secs(20), task).await;
            ended.expect("a promised turn never came").unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_in_a_turn_fails_the_task() {
        let (shared, task) = serving(|mut stream| async move {
            stream.read_u8().await.unwrap();
            panic!("on purpose");
        })
        .await;
        assert_eq!(turn(&shared, b"x").0, b"");
        assert!(task.await.unwrap_err().is_panic());
        // The stream was dropped with the future.
        assert!(shared.turn(b"", InboundState::Open, &mut []).closed);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_future_that_ends_in_a_turn_ends_its_task_and_one_that_is_aborted_is_dropped() {
        let (shared, task) = serving(|mut stream| async move {
            stream.read_u8().await.unwrap();
        })
        .await;
        turn(&shared, b"x");
        task.await.unwrap();

        let held = Arc::new(());
        let weak: Weak<()> = Arc::downgrade(&held);
        let (shared, task) = serving(|mut stream| async move {
            let _held = held;
            stream.read_u8().await.unwrap();
        })
        .await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(weak.upgrade().is_none());
        assert!(shared.turn(b"x", InboundState::Open, &mut []).closed);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_future_that_keeps_waking_itself_does_not_hold_the_turn() {
        let (polls, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (all, in_turn) = (Arc::clone(&polls), Arc::clone(&counted));
        let (shared, task) = serving(|mut stream| async move {
            stream.read_u8().await.unwrap();
            let turns = thread::current().id();
            std::future::poll_fn(|cx| {
                all.fetch_add(1, Ordering::SeqCst);
                if thread::current().id() == turns {
                    in_turn.fetch_add(1, Ordering::SeqCst);
                }
                cx.waker().wake_by_ref();
                match all.load(Ordering::SeqCst) {
                    100 => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            })
            .await;
        })
        .await;
        turn(&shared, b"x");
        task.await.unwrap();
        assert_eq!(polls.load(Ordering::SeqCst), 100);
        assert!(counted.load(Ordering::SeqCst) <= MAX_POLLS);
    }

    /// Turns on one thread and wakes from tokio on another, each finding the other polling. Every
    /// wake must be noticed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost() {
        const TURNS: usize = 20_000;
        let (tick, mut ticks) = tokio::sync::mpsc::unbounded_channel::<()>();
        let (shared, task) = serving(|mut stream| async move {
            let (mut heard, mut ticked) = (0, 0);
            let mut byte = [0; 1];
            while heard < TURNS || ticked < TURNS {
                tokio::select! {
                    read = stream.read(&mut byte), if heard < TURNS => heard += read.unwrap(),
                    tick = ticks.recv(), if ticked < TURNS => {
                        tick.unwrap();
                        ticked += 1;
                    }
                }
            }
        })
        .await;
        let ticking: JoinHandle<()> = tokio::spawn(async move {
            for n in 0..TURNS {
                if n % 3 == 0 {
                    batch_wakeups(|| tick.send(()).unwrap());
                } else {
                    tick.send(()).unwrap();
                }
                if n % 8 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let turning = thread::spawn(move || {
            let mut brought = 0;
            while brought < TURNS {
                let mut result = shared.turn(b"x", InboundState::Open, &mut [0; 8]);
                brought += 1;
                while result.room == 0 && !result.closed {
                    thread::yield_now();
                    result = shared.turn(b"", InboundState::Open, &mut []);
                }
            }
            // From here on as Go does: a turn only after a kick.
            while !until.load(Ordering::SeqCst) {
                if kicks(&shared) > 0 {
                    shared.turn(b"", InboundState::Open, &mut []);
                }
                thread::yield_now();
            }
        });
        let ended = tokio::time::timeout(Duration::from_secs(20), task).await;
        over.store(true, Ordering::SeqCst);
        ended.expect("a wake was lost").unwrap();
        ticking.await.unwrap();
        turning.join().unwrap();
    }
}
