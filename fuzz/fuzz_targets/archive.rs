//! libFuzzer's entry for the target of this name; what it does is in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nydusbox_fuzz::archive(data));
