//! A pass inside of rayon's pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Looks for work that finds none before a thread lets others of the system run.
const PATIENCE: usize = 256;

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
                let mut idle = 0;
                while Some(context.index()) != leader && !over.load(Ordering::Relaxed) {
                    if rayon::yield_now() == Some(Yield::Executed) {
                        idle = 0;
                    } else if idle < PATIENCE {
                        idle += 1;
                        std::hint::spin_loop();
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
        }
        pass()
    })
}
