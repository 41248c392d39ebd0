#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spegel_fuzz::http_request(data));
