//! What every `Transport` and `Keepalive` must do: one suite, run over memory, TCP, UDP, and whatever comes.
//!
//! An implementation's test gives a [`Fabric`] and calls [`run_all`]; likewise a [`KeepaliveFabric`] and
//! [`run_all_keepalive`]. A failing case panics, and its name is printed.
//!
//! Of every case is checked, whatever it is about: each slab that went in comes out exactly once; `Down` is reported once,
//! after all slabs, and nothing after it; what arrives is, byte for byte and in order, what was sent.
//!
//! | cases | file |
//! |---|---|
//! | order, bytes, back-pressure, full queues | [`flow`] |
//! | cut, dropped peer, revocation (I3) | [`endings`] |
//! | random operations by seed | [`random`] |
//! | datagrams | [`keepalive`] |

pub mod endings;
pub mod flow;
pub mod keepalive;
pub mod random;
mod station;

pub use keepalive::{KeepaliveFabric, run_all_keepalive};

use crate::transport::Transport;

/// Makes linked pairs of the transport under test, and breaks them.
pub trait Fabric {
    /// The transport.
    type T: Transport;

    /// A fresh pair. `queue` is how many operations of each kind it shall take at most, or a little more.
    fn pair(&mut self, slab_size: usize, queue: usize) -> (Self::T, Self::T);

    /// Breaks the last pair's link in a way that both ends notice; what arrived before stays arrived.
    fn cut(&mut self);

    /// Whether all `bytes` that the first end has written, none of them taken by the second, have arrived at the second
    /// end's host. True at once where `Written` means just that.
    fn settled(&mut self, first: &Self::T, bytes: usize) -> bool {
        let _ = (first, bytes);
        true
    }

    /// Neither end has anything to do: lets a moment pass, at least 50 µs if the fabric is more than memory.
    fn idle(&mut self) {
        std::thread::yield_now();
    }
}

/// Says which case failed.
struct Case(&'static str);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("conformance: case {} failed", self.0);
        }
    }
}

macro_rules! run_cases {
    ($fabric:expr, $($module:ident :: $case:ident),* $(,)?) => {$({
        let _case = Case(concat!(stringify!($module), "::", stringify!($case)));
        $module::$case($fabric);
    })*};
}
use run_cases;

/// Runs every case. Panics at the first that fails, and prints its name.
pub fn run_all<F: Fabric>(fabric: &mut F) {
    run_cases!(
        fabric,
        endings::what_arrived_before_a_cut_is_reported,
        endings::a_dropped_peer_is_down,
        endings::revoke_reports_what_had_arrived,
        endings::after_revoke_nothing_lands,
    );
    run_together(fabric);
}

/// Runs the cases in which both ends are looked after all the time: for links that need that to stay up.
pub fn run_together<F: Fabric>(fabric: &mut F) {
    run_cases!(
        fabric,
        flow::an_idle_link_reports_nothing,
        flow::records_and_slabs_arrive_in_order,
        flow::big_slabs_arrive_whole,
        flow::both_directions_at_once,
        flow::without_a_posted_slab_nothing_overtakes_and_nothing_is_lost,
        flow::records_before_a_slab_need_no_posted_slab,
        flow::a_full_queue_gives_the_operation_back,
        flow::posting_too_many_gives_the_slab_back,
        endings::a_cut_returns_every_slab,
        endings::a_stalled_end_notices_a_cut,
        endings::revoke_in_mid_stream_keeps_a_prefix,
        endings::the_revoked_end_takes_no_more_operations,
        endings::revoke_by_the_sender_returns_every_slab,
        random::operations_by_seed,
    );
}
