//! Steps whose loss or gradient stands out from those before.

/// Steps that the spike test looks back.
pub(super) const SPIKE_WINDOW: usize = 128;

/// Whether either number lies more than `z` standard deviations above the last steps; never before half a window is full.
pub(super) fn is_spike(recent: impl ExactSizeIterator<Item = [f64; 2]> + Clone, now: [f64; 2], z: f64) -> bool {
    if recent.len() < SPIKE_WINDOW / 2 {
        return false;
    }
    let n = recent.len() as f64;
    (0..2).any(|i| {
        let mean = recent.clone().map(|r| r[i]).sum::<f64>() / n;
        let variance = recent.clone().map(|r| (r[i] - mean).powi(2)).sum::<f64>() / n;
        now[i] - mean > z * variance.sqrt().max(1e-12)
    })
}
