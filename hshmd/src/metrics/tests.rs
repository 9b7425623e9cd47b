use crate::config::MetricsAddress;

#[test]
fn only_places_of_this_machine_are_listened_at() {
    let parse = str::parse::<MetricsAddress>;
    assert_eq!(parse("/run/x.sock"), Ok(MetricsAddress::Path("/run/x.sock".into())));
    assert!(matches!(parse("127.0.0.1:9177"), Ok(MetricsAddress::Port(_))));
    assert!(matches!(parse("[::1]:9177"), Ok(MetricsAddress::Port(_))));
    assert!(parse("0.0.0.0:9177").unwrap_err().contains("elsewhere"));
    assert!(parse("run/x.sock").unwrap_err().contains("absolute path"));
}
