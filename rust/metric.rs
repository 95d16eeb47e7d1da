//! How two vectors are compared.

use serde::{Deserialize, Serialize};

/// Distance or similarity between a query and a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Squared Euclidean distance, smallest first.
    L2,
    /// Inner product, largest first.
    Ip,
}
