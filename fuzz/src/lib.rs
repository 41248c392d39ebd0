//! What every parser of outside bytes, and the core as a whole, must bear: each function takes
//! any bytes and panics if a promise is broken. Decides nothing; called by the fuzz targets
//! (`make fuzz SECONDS=60`) and, with the files of `corpus/`, by the ordinary tests on stable.
//!
//! A find is left by cargo-fuzz in `fuzz/artifacts/TARGET/`. Fix it, leave a unit test named
//! after its symptom beside the code, and move the file to `fuzz/corpus/TARGET/` under a name
//! that says what it is. Corpora stay small: what a long run collected is brought down by
//! `cargo +nightly fuzz cmin -s none --features libfuzzer TARGET`, and only files that a person
//! would miss are kept.

mod bytes;
mod control_message;
mod hosts_toml;
mod http_answer;
mod http_request;
mod manifest;
mod node_inputs;
mod range_header;
mod reference;

pub use self::{
    control_message::control_message,
    hosts_toml::hosts_toml,
    http_answer::http_answer,
    http_request::{HttpAnswer, http_request, http_request_answers},
    manifest::manifest,
    node_inputs::{node_inputs, node_inputs_fingerprint},
    range_header::range_header,
    reference::reference,
};
