//! (being written)
pub mod proto {
    #![allow(missing_debug_implementations, unreachable_pub, clippy::all)]
    tonic::include_proto!("proto");
}
