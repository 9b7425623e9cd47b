//! Two processes that share text through a segment.
//!
//! With a daemon running, and in one terminal:
//!
//! ```text
//! $ hshmctl create words --size 64M
//! $ cargo run -p hshm-client --example worker -- put "to be or not to be"
//! 0x50000
//! ```
//!
//! and in another:
//!
//! ```text
//! $ cargo run -p hshm-client --example worker -- take 0x50000
//! to be or not to be
//! ```
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::error::Error;

use hshm_client::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let segment = Client::connect()?.attach("words")?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["put", text] => {
            let length = u64::try_from(text.len())?.to_le_bytes();
            let block = segment.put_bytes(&[length.as_slice(), text.as_bytes()].concat())?;
            println!("{:#x}", segment.share(block));
        }
        ["take", offset] => {
            let offset = u64::from_str_radix(offset.trim_start_matches("0x"), 16)?;
            let block = segment.receive(offset)?;
            let mut bytes = vec![0; segment.usable_bytes(block)?];
            segment.read_bytes(block, &mut bytes)?;
            let (length, text) = bytes.split_first_chunk().ok_or("the block is too short")?;
            let length = usize::try_from(u64::from_le_bytes(*length))?;
            println!("{}", std::str::from_utf8(text.get(..length).ok_or("not one of ours")?)?);
            // SAFETY: whoever put the text there gave its offset away; we are the only ones left.
            unsafe { segment.free(block)? };
        }
        _ => return Err("usage: worker put TEXT | worker take OFFSET".into()),
    }
    segment.detach()?;
    Ok(())
}
