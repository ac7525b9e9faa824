use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rustix::net::{AddressFamily as Family, RecvFlags, SendFlags, SocketType};

use super::*;
use address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use link::{LinkAttribute, LinkFlags};

/// What a message is in bytes, and that it is read again as it was.
fn check(message: RouteNetlinkMessage, kind: u16, expected: &[u8]) {
    let mut request = NetlinkMessage::from(message.clone());
    request.finalize();
    assert_eq!(request.header.message_type, kind);
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    assert_eq!(&bytes[16..], expected);
    let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
    assert_eq!(read.payload, NetlinkPayload::InnerMessage(message));
}

#[test]
fn an_interface_is_named_and_moved() {
    let mut link = LinkMessage::default();
    link.header.index = 7;
    link.header.change_mask |= LinkFlags::Up;
    link.attributes.push(LinkAttribute::IfName("eth0".into()));
    link.attributes.push(LinkAttribute::NetNsFd(9));
    let words = [7_u32, 0, 1].map(u32::to_ne_bytes).concat();
    let name = [&9_u16.to_ne_bytes()[..], &3_u16.to_ne_bytes(), b"eth0\0\0\0\0"].concat();
    let space = [
        &8_u16.to_ne_bytes()[..],
        &28_u16.to_ne_bytes(),
        &9_u32.to_ne_bytes(),
    ]
    .concat();
    let expected = [&[0; 4][..], &words, &name, &space].concat();
    check(RouteNetlinkMessage::SetLink(link), 19, &expected);
}

#[test]
fn an_address_has_its_network() {
    let address = AddressMessage {
        header: address::AddressHeader {
            family: AddressFamily::Inet,
            prefix_len: 24,
            flags: AddressHeaderFlags::Permanent,
            scope: AddressScope::Other(253),
            index: 3,
        },
        attributes: vec![
            AddressAttribute::Local([10, 0, 0, 2].into()),
            AddressAttribute::Broadcast([10, 0, 0, 255].into()),
        ],
    };
    let header = |kind: u16| [8_u16, kind].map(u16::to_ne_bytes).concat();
    let expected = [
        &[2, 24, 0x80, 253][..],
        &3_u32.to_ne_bytes(),
        &header(2),
        &[10, 0, 0, 2],
        &header(4),
        &[10, 0, 0, 255],
    ];
    check(RouteNetlinkMessage::NewAddress(address), 20, &expected.concat());
}

#[test]
fn damaged_messages_are_errors_and_unknown_attributes_are_skipped() {
    let attributes = |bytes: &[u8]| LinkMessage::parse(&[&[0; 16][..], bytes].concat());
    assert_eq!(
        attributes(&[5, 0, 99, 0, 1, 0, 0, 0]).unwrap(),
        LinkMessage::default()
    );
    for bytes in [&[3, 0, 3, 0][..], &[9, 0, 3, 0, 1], &[6, 0, 28, 0, 1, 1, 0, 0]] {
        assert!(attributes(bytes).is_err(), "{bytes:?}");
    }
    assert!(LinkMessage::parse(&[0; 15]).is_err());
    assert!(AddressMessage::parse(&[0; 7]).is_err());
    assert!(AddressMessage::parse(&[2, 8, 0, 0, 1, 0, 0, 0, 7, 0, 1, 0, 1, 2, 3, 0]).is_err());
    let mut header = NetlinkHeader::default();
    header.message_type = 24;
    assert!(RouteNetlinkMessage::deserialize(&header, &[0; 16]).is_err());
}

/// What the kernel answers to a request. NETLINK_ROUTE is the protocol that needs no name.
fn ask(message: RouteNetlinkMessage, flags: u16) -> NetlinkPayload<RouteNetlinkMessage> {
    let socket = rustix::net::socket(Family::NETLINK, SocketType::RAW, None).unwrap();
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    rustix::net::send(&socket, &bytes, SendFlags::empty()).unwrap();
    let mut answer = [0; 16384];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
    NetlinkMessage::deserialize(&answer[..length]).unwrap().payload
}

#[test]
fn the_kernel_understands_and_is_understood() {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName("lo".into()));
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(found)) =
        ask(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)
    else {
        panic!("no interface lo");
    };
    assert_eq!(found.header.index, 1);
    assert!(found.attributes.contains(&LinkAttribute::IfName("lo".into())));
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    match ask(
        RouteNetlinkMessage::GetAddress(address),
        NLM_F_REQUEST | NLM_F_DUMP,
    ) {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(first)) => {
            let own = |known: &AddressAttribute| matches!(known, AddressAttribute::Local(IpAddr::V4(_)));
            assert!(first.attributes.iter().any(own), "{first:?}");
            assert_eq!(first.header.family, AddressFamily::Inet);
        }
        // No interface is up here.
        NetlinkPayload::Done(_) => {}
        other => panic!("{other:?}"),
    }
}
