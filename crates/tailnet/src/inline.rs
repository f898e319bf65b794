//! Polls the future that serves a connection on Go's thread, in the turn that brought the bytes it
//! waits for.
//!
//! Invariants
//! - The future belongs to a tokio task (its [`Home`]), so it ends, panics and is cancelled as any
//!   task does.
//! - One thread polls it at a time. A thread that finds it being polled sets a flag; the poller
//!   then polls again. No wake is lost.
//! - A future woken inside [`together`](super::together) is polled by a turn that is certain to
//!   come. If none is, tokio polls it.
//! - A turn polls only a future that was woken, and at most [`POLLS`] times; tokio does the rest.
//!   Go bounds how many turns run at a time, since each of them occupies a thread.
//! - A panic never leaves a turn; it is passed on to the task.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{future::BoxFuture, task::AtomicWaker};
use tokio::runtime::Handle;

/// How often one turn polls a future that keeps waking itself.
const POLLS: usize = 8;

/// Not woken and not being polled.
const IDLE: u8 = 0;
/// Woken; the task or a turn will poll it.
const WOKEN: u8 = 1;
const POLLED: u8 = 2;
/// Being polled, and woken again since the poll began.
const POLLED_AND_WOKEN: u8 = 3;
const DONE: u8 = 4;

/// Returns true if a turn that has not begun yet will poll the future just woken.
type Promise = dyn Fn(&Arc<Inline>) -> bool + Send + Sync;

/// A future that turns may poll, and the state that decides who polls it.
pub(super) struct Inline {
    state: AtomicU8,
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    home: AtomicWaker,
    promise: Box<Promise>,
    runtime: Handle,
}

/// The right to poll, held until dropped.
pub(super) struct Turn<'a>(&'a Arc<Inline>);

/// The tokio task that owns the future.
pub(super) struct Home(Arc<Inline>);

impl Home {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(
        future: BoxFuture<'static, ()>,
        promise: impl Fn(&Arc<Inline>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inline {
            state: AtomicU8::new(WOKEN),
            future: Mutex::new(Some(future)),
            panic: Mutex::new(None),
            home: AtomicWaker::new(),
            promise: Box::new(promise),
            runtime: Handle::current(),
        }))
    }

    pub(super) fn inline(&self) -> Arc<Inline> {
        Arc::clone(&self.0)
    }
}

impl Inline {
    /// Takes the right to poll, for a turn. `None`: another thread is polling it and will see any
    /// new wake.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Turn<'_>> {
        let mine = self.changed(IDLE, POLLED) || self.changed(WOKEN, POLLED_AND_WOKEN);
        // Not `then_some`: it would build the `Turn` in either case, and dropping that releases
        // another thread's right.
        mine.then(|| Turn(self))
    }

    /// No further turn comes: a future that relied on one is polled by tokio.
    pub(super) fn has_no_turns(&self) {
        self.home.wake();
    }

    /// Polls once. The caller must have the right to.
    fn poll(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let mut place = lock(&self.future);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(future) = place.as_mut()
                && future.as_mut().poll(&mut cx).is_ready()
            {
                *place = None;
            }
        }));
        if let Err(panic) = outcome {
            *lock(&self.panic) = Some(panic);
            let broken = place.take();
            // Dropping what is left of the future may panic as well.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        }
        if place.is_none() {
            self.state.store(DONE, Ordering::Release);
        }
    }

    fn changed(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Turn<'_> {
    /// Polls while the future has been woken, at most [`POLLS`] times.
    pub(super) fn run(&mut self) {
        for _ in 0..POLLS {
            if !self.0.changed(POLLED_AND_WOKEN, POLLED) {
                return;
            }
            let _runtime = self.0.runtime.enter();
            self.0.poll();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.0.changed(POLLED, IDLE) {
            return;
        }
        self.0.changed(POLLED_AND_WOKEN, WOKEN);
        self.0.home.wake();
    }
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            let state = self.state.load(Ordering::Acquire);
            let (next, home) = match state {
                IDLE => (WOKEN, true),
                POLLED => (POLLED_AND_WOKEN, false),
                _ => return,
            };
            if self.changed(state, next) {
                if home && !(self.promise)(self) {
                    self.home.wake();
                }
                return;
            }
        }
    }
}

impl Future for Home {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let inline = &self.0;
        inline.home.register(cx.waker());
        if inline.changed(WOKEN, POLLED) {
            inline.poll();
            if !inline.changed(POLLED, IDLE) && inline.changed(POLLED_AND_WOKEN, WOKEN) {
                // Let other tasks run first, as any task that wakes itself does.
                cx.waker().wake_by_ref();
            }
        }
        if inline.state.load(Ordering::Acquire) != DONE {
            return Poll::Pending;
        }
        if let Some(panic) = lock(&inline.panic).take() {
            resume_unwind(panic);
        }
        Poll::Ready(())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // The lock waits for a turn that is polling right now.
        let mut place = lock(&self.0.future);
        let future = place.take();
        self.0.state.store(DONE, Ordering::Release);
        drop(place);
        drop(future);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            direct::{
                Conn, End,
                tests::{connection, kicks},
            },
            together,
        },
        *,
    };

    /// A task with its home, after the connection was read once and had nothing.
    async fn serving<F>(
        future: impl FnOnce(super::super::Stream) -> F,
    ) -> (Arc<Conn>, JoinHandle<()>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (conn, stream) = connection();
        let home = stream.home().unwrap();
        let task = tokio::spawn(home(Box::pin(future(stream))));
        while conn
            .inline()
            .is_none_or(|i| i.state.load(Ordering::Acquire) != IDLE)
        {
            tokio::task::yield_now().await;
        }
        (conn, task)
    }

    /// A turn on a thread of its own, as Go does it.
    fn turn(conn: &Arc<Conn>, input: &'static [u8]) -> (Vec<u8>, ThreadId) {
        let conn = Arc::clone(conn);
        thread::spawn(move || {
            let mut out = vec![0; 100];
            let told = conn.turn(input, End::Open, &mut out);
            out.truncate(told.out);
            (out, thread::current().id())
        })
        .join()
        .unwrap()
    }

    async fn echo(mut stream: super::super::Stream, heard: std::sync::mpsc::Sender<ThreadId>) {
        let mut bytes = [0; 100];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            let _ = heard.send(thread::current().id());
            stream.write_all(bytes.get(..n).unwrap()).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_answer_leaves_with_the_turn_that_brought_its_question() {
        let (told, heard) = channel();
        let (conn, _task) = serving(|stream| echo(stream, told)).await;
        for _ in 0..3 {
            let (out, on) = turn(&conn, b"ping");
            assert_eq!(out, b"ping");
            assert_eq!(heard.recv().unwrap(), on);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_turn_has_the_runtime_and_what_wakes_elsewhere_is_done_by_tokio() {
        let (conn, task) = serving(|mut stream| async move {
            stream.read_u8().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            stream.write_all(b"late").await.unwrap();
        })
        .await;
        assert_eq!(turn(&conn, b"x").0, b"");
        task.await.unwrap();
        assert_eq!(turn(&conn, b"").0, b"late");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_woken_together_goes_on_in_the_turn_that_it_asks_for() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (polled, on) = channel();
        let (conn, task) = serving(|mut stream| async move {
            let word: &[u8] = told.await.unwrap();
            let _ = polled.send(thread::current().id());
            stream.write_all(word).await.unwrap();
        })
        .await;
        together(|| tell.send(b"word").unwrap());
        assert_eq!(kicks(&conn), 1);
        assert!(on.try_recv().is_err(), "polled before its turn");
        let (out, thread) = turn(&conn, b"");
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
                let late = lock(&self.0).take();
                late.into_iter().for_each(|late| late());
            }
        }
        let within = Arc::new(Within(Mutex::new(None)));
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (tell, told) = tokio::sync::oneshot::channel();
        let (hold, held) = channel::<()>();
        let (release, released) = channel::<()>();
        let waker = Waker::from(within.clone());
        let (conn, task) = serving(|mut stream| async move {
            // The buffer is full, so the turn makes room in it and wakes the writer.
            stream.write_all(&[0; 64 << 10]).await.unwrap();
            let full = Pin::new(&mut stream)
                .poll_write(&mut Context::from_waker(&waker), b"x")
                .is_pending();
            assert!(full);
            begun.await.unwrap();
            hold.send(()).unwrap();
            released.recv().unwrap();
            told.await.unwrap();
        })
        .await;
        let inline = Arc::clone(conn.inline().unwrap());
        *lock(&within.0) = Some(Box::new(move || {
            assert_eq!(inline.state.load(Ordering::Acquire), POLLED);
            release.send(()).unwrap();
            while inline.state.load(Ordering::Acquire) != IDLE {
                thread::yield_now();
            }
            together(|| tell.send(()).unwrap());
        }));
        begin.send(()).unwrap();
        held.recv().unwrap();
        assert_eq!(turn(&conn, b"").0.len(), 100);
        let ended = tokio::time::timeout(Duration::from_secs(20), task).await;
        ended.expect("the promised turn was over").unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn where_no_turn_comes_any_more_tokio_goes_on() {
        for freed_before in [true, false] {
            let (tell, told) = tokio::sync::oneshot::channel();
            let (conn, task) = serving(|stream| async move {
                told.await.unwrap();
                drop(stream);
            })
            .await;
            if freed_before {
                conn.freed();
            }
            together(|| tell.send(()).unwrap());
            assert_eq!(kicks(&conn), usize::from(!freed_before));
            if !freed_before {
                conn.freed();
            }
            let ended = tokio::time::timeout(Duration::from_secs(20), task).await;
            ended.expect("a promised turn never came").unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_in_a_turn_is_the_tasks() {
        let (conn, task) = serving(|mut stream| async move {
            stream.read_u8().await.unwrap();
            panic!("on purpose");
        })
        .await;
        assert_eq!(turn(&conn, b"x").0, b"");
        assert!(task.await.unwrap_err().is_panic());
        // The stream was dropped with the future.
        assert!(conn.turn(b"", End::Open, &mut []).closed);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_future_that_ends_in_a_turn_ends_its_task_and_one_that_is_aborted_is_dropped() {
        let (conn, task) = serving(|mut stream| async move {
            stream.read_u8().await.unwrap();
        })
        .await;
        turn(&conn, b"x");
        task.await.unwrap();

        let held = Arc::new(());
        let weak: Weak<()> = Arc::downgrade(&held);
        let (conn, task) = serving(|mut stream| async move {
            let _held = held;
            stream.read_u8().await.unwrap();
        })
        .await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(weak.upgrade().is_none());
        assert!(conn.turn(b"x", End::Open, &mut []).closed);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_future_that_never_rests_does_not_hold_the_turn() {
        let (polls, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (all, in_turn) = (Arc::clone(&polls), Arc::clone(&counted));
        let (conn, task) = serving(|mut stream| async move {
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
        turn(&conn, b"x");
        task.await.unwrap();
        assert_eq!(polls.load(Ordering::SeqCst), 100);
        assert!(counted.load(Ordering::SeqCst) <= POLLS);
    }

    /// Turns on one thread and wakes from tokio on another, each finding the other polling. Every
    /// wake must be noticed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost() {
        const TURNS: usize = 20_000;
        let (tick, mut ticks) = tokio::sync::mpsc::unbounded_channel::<()>();
        let (conn, task) = serving(|mut stream| async move {
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
                    together(|| tick.send(()).unwrap());
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
                let mut told = conn.turn(b"x", End::Open, &mut [0; 8]);
                brought += 1;
                while told.room == 0 && !told.closed {
                    thread::yield_now();
                    told = conn.turn(b"", End::Open, &mut []);
                }
            }
            // From here on as Go does: a turn only after a kick.
            while !until.load(Ordering::SeqCst) {
                if kicks(&conn) > 0 {
                    conn.turn(b"", End::Open, &mut []);
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
