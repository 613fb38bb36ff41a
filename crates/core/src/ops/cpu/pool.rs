//! A pass inside of rayon's pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// Looks for work that finds none, after which a thread lets others of the system run and sees how late it is.
const PATIENCE: usize = 256;

/// How long a thread stays awake without work. The operations of a pass follow each other closer than that. And it has an end: a thread may
/// have come to wait here from inside of an operation's own work, on which the pass waits.
const AWAKE: Duration = Duration::from_millis(1);

/// Set when the pass has ended, however it ends.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a pass of many short operations on one of the pool's threads, while the others stay awake between them. A product of one row
/// takes a fraction of a millisecond; to wake a sleeping thread for each costs a tenth of that, and more of small ones.
pub(super) fn pass<T: Send>(pass: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| {
        let threads = rayon::current_num_threads();
        let leader = rayon::current_thread_index();
        let ended = Ended(Arc::new(AtomicBool::new(threads == 1)));
        if threads > 1 {
            // A job for each thread by name: nobody else can take it, so that the leader, who may look for work while it waits, never
            // waits for itself. A thread that is busy till the end finds it over.
            let over = ended.0.clone();
            rayon::spawn_broadcast(move |context| {
                let (mut idle, mut last) = (0, Instant::now());
                while Some(context.index()) != leader && !over.load(Ordering::Relaxed) {
                    if rayon::yield_now() == Some(Yield::Executed) {
                        (idle, last) = (0, Instant::now());
                    } else if idle < PATIENCE {
                        idle += 1;
                        std::hint::spin_loop();
                    } else if last.elapsed() < AWAKE {
                        idle = 0;
                        std::thread::yield_now();
                    } else {
                        break;
                    }
                }
            });
        }
        pass()
    })
}
