//! Tests of the handshake: its bytes are for ever, and versions meet or say who is too old.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn range(min: Version, max: Version) -> VersionRange {
    VersionRange { min, max }
}

#[test]
fn the_newest_common_version_is_chosen() {
    assert_eq!(range(1, 3).negotiate(range(2, 5)), Ok(3));
    assert_eq!(range(2, 5).negotiate(range(1, 3)), Ok(3));
    assert_eq!(range(4, 4).negotiate(range(1, 9)), Ok(4));
}

#[test]
fn where_there_is_none_each_side_knows_which_is_older() {
    let mismatch = range(1, 2).negotiate(range(3, 4)).unwrap_err();
    assert!(mismatch.ours_is_older());
    assert!(mismatch.to_string().contains("1 to 2") && mismatch.to_string().contains("3 to 4"));
    assert!(!range(3, 4).negotiate(range(1, 2)).unwrap_err().ours_is_older());
    // A range that is upside down has nothing in it.
    assert!(range(1, 9).negotiate(range(5, 4)).is_err());
}

/// These bytes never change, whatever the protocol version.
#[test]
fn a_greeting_is_written_like_this_for_ever() {
    let hello = Hello { versions: range(1, 2), layout_version: 3, client_name: "ab".into() };
    let bytes = b"hshmHELO\x01\0\0\0\x02\0\0\0\x03\0\0\0\x02\0\0\0ab";
    assert_eq!(hello.encode(), bytes);
    // Fields that a later release appends are ignored.
    assert_eq!(Hello::decode(&[bytes.as_slice(), b"more"].concat()).unwrap(), hello);

    let welcome = Welcome {
        version: 1,
        layout_version: 3,
        identity: ProcessId { pid: 5, start_ticks: 6 },
        session: 7,
        server_version: "x".into(),
    };
    let bytes =
        b"hshmWELC\x01\0\0\0\x03\0\0\0\x05\0\0\0\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0x";
    assert_eq!(welcome.encode(), bytes);
    assert_eq!(WelcomeOrRefusal::decode(bytes).unwrap(), WelcomeOrRefusal::Welcome(welcome));

    let refusal = Refusal {
        code: 2,
        versions: range(3, 4),
        server_version: "x".into(),
        message: "m".into(),
        advice: "a".into(),
    };
    let bytes = b"hshmREFU\x02\0\0\0\x03\0\0\0\x04\0\0\0\x01\0\0\0x\x01\0\0\0m\x01\0\0\0a";
    assert_eq!(refusal.encode(), bytes);
    assert_eq!(WelcomeOrRefusal::decode(bytes).unwrap(), WelcomeOrRefusal::Refusal(refusal));
}

#[test]
fn something_else_than_a_greeting_is_refused() {
    let good = Hello::new("name").encode();
    for len in 0..good.len() {
        assert!(Hello::decode(good.get(..len).unwrap()).is_err(), "{len} bytes");
    }
    assert!(Hello::decode(b"GET / HTTP/1.1\r\n\r\n").is_err());
    assert!(Hello::decode(&vec![0; MAX_HANDSHAKE_BYTES + 1]).is_err());
    let long = Hello { client_name: "x".repeat(500), ..Hello::new("") };
    assert!(Hello::decode(&long.encode()).unwrap().client_name.len() <= MAX_CLIENT_NAME_BYTES);
}

proptest! {
    #[test]
    fn garbage_is_never_more_than_an_error(
        kind in 0..4usize, bytes in vec(any::<u8>(), 0..200),
    ) {
        let magic: &[u8] = [HELLO_MAGIC.as_slice(), &WELCOME_MAGIC, &REFUSAL_MAGIC, &[]][kind];
        let packet = [magic, &bytes].concat();
        let _ = Hello::decode(&packet);
        let _ = WelcomeOrRefusal::decode(&packet);
    }

    #[test]
    fn a_greeting_comes_back_as_it_was(
        min: u32, max: u32, layout_version: u32, client_name in "[a-zä ]{0,30}",
    ) {
        let hello = Hello { versions: range(min, max), layout_version, client_name };
        prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
    }
}
