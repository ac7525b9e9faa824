use super::*;

#[test]
fn the_loopback_interface_is_there_with_its_address() {
    let listed = list_interfaces().expect("listed").interfaces;
    let loopback = listed
        .iter()
        .find(|interface| interface.name == "lo")
        .expect("lo");
    assert_eq!(loopback.hw_addr, "00:00:00:00:00:00");
    assert_eq!(loopback.raw_flags & 8, 8, "IFF_LOOPBACK");
    list_routes().expect("listed");
}

#[test]
fn what_is_not_understood_changes_nothing_and_is_named() {
    let update = |interface: types::Interface| {
        let request = UpdateInterfaceRequest {
            interface: Some(interface).into(),
            ..Default::default()
        };
        update_interface(request).expect_err("refused")
    };
    let loopback = || types::Interface {
        device: "lo".into(),
        ..Default::default()
    };
    let none = update(types::Interface {
        hw_addr: "02:00:00:00:99:99".into(),
        ..Default::default()
    });
    assert_eq!(none.kind, FailureKind::NoSuchInterface);
    let bad = update(types::Interface {
        name: "a/b".into(),
        ..loopback()
    });
    assert_eq!(bad.kind, FailureKind::Invalid);
    for (address, mask) in [
        ("10.0.0.1", "33"),
        ("10.0.0", "8"),
        ("fd00::1", "129"),
        ("fd00::1", ""),
    ] {
        let bad = update(types::Interface {
            ip_addresses: vec![types::IPAddress {
                address: address.into(),
                mask: mask.into(),
                ..Default::default()
            }],
            ..loopback()
        });
        assert_eq!(bad.kind, FailureKind::Invalid, "{address}/{mask}");
    }
    let neighbor = types::ARPNeighbor {
        to_ip_address: Some(types::IPAddress {
            address: "192.0.2.1".into(),
            ..Default::default()
        })
        .into(),
        device: "none".into(),
        ..Default::default()
    };
    let failed = neighbor_message(&neighbor, &[]).err().expect("refused");
    assert_eq!(failed.kind, FailureKind::NoSuchInterface);
}
