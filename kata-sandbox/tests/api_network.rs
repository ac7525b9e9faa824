//! The agent's methods for the guest's network: interfaces, routes, neighbours and packet filters.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bed;

use api::inside::Inside;
use api::{MAIN, ROOT, client, run};
use bed::Bed;
use kata_agent_proto::agent::{
    ARPNeighbors, AddARPNeighborsRequest, GetIPTablesRequest, ListInterfacesRequest, ListRoutesRequest,
    Routes, SetIPTablesRequest, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use kata_agent_proto::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use kata_agent_proto::{CallError, Client, Failed, FailureKind};
use kata_sandbox::Sandbox;
use protobuf::MessageField;

/// The ends of a cable, by their addresses: all that is known of them before they have names.
const CARD: &str = "02:00:00:00:0a:01";
const OTHER_CARD: &str = "02:00:00:00:0a:02";

/// Lays the cable (`rtnetlink(7)`, RTM_NEWLINK with the peer of a veth as its data).
const CABLE: &str = r#"
    sub attribute { my $length = 4 + length $_[1]; pack("SSa*", $length, @_) . "\0" x (-$length & 3) }
    sub card { attribute(3, "$_[0]\0") . attribute(1, pack "H*", $_[1] =~ s/://gr) }
    my $message = "\0" x 16;
    my $peer = attribute(1, $message . card @ENDS[2, 3]);
    my $body = $message . card(@ENDS[0, 1]) . attribute(18, attribute(1, "veth") . attribute(2, $peer));
    socket my $netlink, 16, 3, 0 or die "netlink: $!\n";
    syswrite $netlink, pack("LSSLLa*", 16 + length $body, 16, 0x605, 1, 0, $body);
    sysread $netlink, my $answer, 9000;
    my (undef, $kind, undef, undef, undef, $error) = unpack "LSSLLl", $answer;
    $! = -$error;
    die "veth: $!\n" if $kind != 2 || $error;
"#;

/// What a route is about (rtnetlink(7), RT_SCOPE_LINK): what is on the cable itself.
const ON_LINK: u32 = 253;

/// The flag of an interface that is up (netdevice(7), IFF_UP).
const UP: u32 = 1;

fn ip(address: &str, mask: &str) -> IPAddress {
    IPAddress {
        family: if address.contains(':') {
            IPFamily::v6.into()
        } else {
            IPFamily::v4.into()
        },
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    }
}

/// A card by its address, and what it is to be.
fn card(hw_addr: &str, name: &str, addresses: &[(&str, &str)]) -> Interface {
    Interface {
        hw_addr: hw_addr.into(),
        name: name.into(),
        ip_addresses: addresses
            .iter()
            .map(|(address, mask)| ip(address, mask))
            .collect(),
        ..Default::default()
    }
}

async fn update(client: &Client, interface: Interface) -> Result<Interface, CallError> {
    let request = UpdateInterfaceRequest {
        interface: MessageField::some(interface),
        ..Default::default()
    };
    client.update_interface(request).await
}

/// The interface that has this address, and its addresses but those that the kernel gives by itself.
async fn listed(client: &Client, hw_addr: &str) -> Interface {
    let all = client
        .list_interfaces(ListInterfacesRequest::new())
        .await
        .unwrap();
    let mut found = all.interfaces.into_iter().filter(|one| one.hw_addr == hw_addr);
    let mut interface = found.next().unwrap();
    assert_eq!(found.next(), None, "{hw_addr} is there once");
    interface
        .ip_addresses
        .retain(|ip| !ip.address.starts_with("fe80:"));
    interface
        .ip_addresses
        .sort_by(|one, other| one.address.cmp(&other.address));
    interface
}

fn failed(kind: FailureKind, subject: &str) -> CallError {
    let Failed { kind, subject } = Failed::new(kind, subject);
    CallError::Failed { kind, subject }
}

const ADDRESSES: [(&str, &str); 2] = [("192.0.2.7", "24"), ("2001:db8::7", "64")];

/// A card is found by its address and gets its name, size of packets and addresses; it can change names with another.
async fn interfaces(client: &Client, inside: &mut Inside<'_>) {
    let ends = format!(r#"my @ENDS = ("one", "{CARD}", "two", "{OTHER_CARD}");"#);
    inside.perl(&format!("{ends}{CABLE}")).await;
    let fresh = listed(client, CARD).await;
    assert_eq!(
        (fresh.name.as_str(), fresh.mtu, fresh.raw_flags & UP),
        ("one", 1500, 0)
    );
    assert_eq!(fresh.ip_addresses, []);

    let mut wanted = card(CARD, "net0", &ADDRESSES);
    wanted.mtu = 1400;
    assert_eq!(update(client, wanted.clone()).await.unwrap(), wanted);
    let other = card(
        OTHER_CARD,
        "net1",
        &[("198.51.100.1", "32"), ("2001:db8:1::1", "128")],
    );
    update(client, other.clone()).await.unwrap();
    let is = |found: &Interface, name: &str, mtu: u64, wanted: &Interface| {
        let found = (
            &*found.name,
            &*found.device,
            found.mtu,
            found.raw_flags & UP,
            &found.ip_addresses,
        );
        assert_eq!(found, (name, name, mtu, UP, &wanted.ip_addresses));
    };
    is(&listed(client, CARD).await, "net0", 1400, &wanted);
    is(&listed(client, OTHER_CARD).await, "net1", 1500, &other);
    // In the kernel's words, from inside.
    let seen = run(
        client,
        MAIN,
        "seen",
        "cd /sys/class/net 2>/dev/null; grep -c '^ *net[01]:' /proc/net/dev",
    )
    .await;
    assert_eq!(seen, (0, "2\n".into()));

    // Names change hands, and nothing else changes.
    wanted.name = "net1".into();
    update(client, wanted.clone()).await.unwrap();
    is(&listed(client, CARD).await, "net1", 1400, &wanted);
    is(&listed(client, OTHER_CARD).await, "net0", 1500, &other);
    wanted.name = "net0".into();
    update(client, wanted.clone()).await.unwrap();

    // An address that is not asked for any more is gone, and one that stays is not taken away in between.
    let fewer = Interface {
        ip_addresses: vec![ip("192.0.2.7", "24")],
        mtu: 0,
        ..wanted.clone()
    };
    update(client, fewer.clone()).await.unwrap();
    is(&listed(client, CARD).await, "net0", 1400, &fewer);
    update(client, wanted.clone()).await.unwrap();
    is(&listed(client, CARD).await, "net0", 1400, &wanted);
    refused_interfaces(client, &wanted).await;
    is(&listed(client, CARD).await, "net0", 1400, &wanted);

    // Without an address of hardware it is the name that finds it.
    let loopback = Interface {
        device: "lo".into(),
        name: "lo".into(),
        mtu: 9000,
        ip_addresses: vec![ip("127.0.0.1", "8"), ip("::1", "128")],
        ..Default::default()
    };
    update(client, loopback.clone()).await.unwrap();
    let found = listed(client, "00:00:00:00:00:00").await;
    assert_eq!((&*found.name, found.mtu), ("lo", 9000));
    assert_eq!(found.ip_addresses, loopback.ip_addresses);
}

/// What cannot be is refused by its name, and changes nothing.
async fn refused_interfaces(client: &Client, wanted: &Interface) {
    let nowhere = card("02:00:00:00:12:34", "net9", &[]);
    let error = update(client, nowhere).await.unwrap_err();
    assert_eq!(error, failed(FailureKind::NoSuchInterface, "02:00:00:00:12:34"));
    for (hw_addr, name, mask, subject) in [
        (
            CARD,
            "a name of many words",
            "24",
            "interface name \"a name of many words\"",
        ),
        (CARD, "net0", "33", "prefix \"33\" of 203.0.113.1"),
        ("02:xx", "net0", "24", "hardware address \"02:xx\""),
    ] {
        let wrong = card(hw_addr, name, &[("203.0.113.1", mask)]);
        let error = update(client, wrong).await.unwrap_err();
        assert_eq!(error, failed(FailureKind::Invalid, subject));
    }
    let mut huge = wanted.clone();
    huge.mtu = 1 << 20;
    let error = update(client, huge).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Guest), "{error}");
    assert!(error.to_string().contains("mtu and flags of net0"), "{error}");
}

fn route(dest: &str, gateway: &str, device: &str) -> Route {
    Route {
        dest: dest.into(),
        gateway: gateway.into(),
        device: device.into(),
        family: if dest.contains(':') {
            IPFamily::v6.into()
        } else {
            IPFamily::v4.into()
        },
        ..Default::default()
    }
}

async fn update_routes(client: &Client, routes: Vec<Route>) -> Result<Routes, CallError> {
    let request = UpdateRoutesRequest {
        routes: MessageField::some(Routes {
            routes,
            ..Default::default()
        }),
        ..Default::default()
    };
    client.update_routes(request).await
}

/// Routes by what tells them apart.
fn lines(routes: &Routes) -> Vec<(&str, &str, &str, &str, u32)> {
    let routes = routes.routes.iter();
    // Each interface has one to its own IPv6 addresses by itself.
    let mut lines: Vec<_> = routes
        .filter(|route| !route.dest.starts_with("fe80:"))
        .map(|route| {
            (
                &*route.dest,
                &*route.gateway,
                &*route.device,
                &*route.source,
                route.scope,
            )
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// Routes are exactly those that are asked for, beside those that addresses bring along.
async fn routes(client: &Client, inside: &mut Inside<'_>) {
    let gateways = route("10.9.0.0/16", "198.51.100.99", "");
    let mut to_gateway = route("198.51.100.99/32", "", "net0");
    to_gateway.source = "192.0.2.7".into();
    to_gateway.scope = ON_LINK;
    let default = route("default", "192.0.2.1", "net0");
    let sixth = route("2001:db8:9::/48", "2001:db8::1", "net0");
    // One by a gateway that another leads to, which comes later in the list.
    let all = vec![gateways, to_gateway, default, sixth];
    let answer = update_routes(client, all.clone()).await.unwrap();
    let expected = [
        ("", "192.0.2.1", "net0", "", 0),
        ("10.9.0.0/16", "198.51.100.99", "net0", "", 0),
        ("192.0.2.0/24", "", "net0", "192.0.2.7", ON_LINK),
        ("198.51.100.99/32", "", "net0", "192.0.2.7", ON_LINK),
        ("2001:db8:1::1/128", "", "net1", "", 0),
        ("2001:db8:9::/48", "2001:db8::1", "net0", "", 0),
        ("2001:db8::/64", "", "net0", "", 0),
    ];
    assert_eq!(lines(&answer), expected);
    let list = async || client.list_routes(ListRoutesRequest::new()).await.unwrap();
    assert_eq!(lines(&list().await), expected);
    // In the kernel's words (proc_pid_net(5), route): destination and gateway in hexadecimal.
    let table = inside.done("cut -f 1-3 /proc/net/route").await;
    for line in ["net0\t00000000\t010200C0", "net0\t0000090A\t636433C6"] {
        assert!(table.contains(line), "{table}");
    }

    // A request that is wrong in one part changes nothing.
    for (wrong, kind, subject) in [
        (
            route("10.8.0.0/99", "", "net0"),
            FailureKind::Invalid,
            "prefix \"99\" of 10.8.0.0",
        ),
        (
            route("10.8.0.0/16", "2001:db8::1", "net0"),
            FailureKind::Invalid,
            "route \"10.8.0.0/16\" mixes address families",
        ),
        (
            route("10.8.0.0/16", "", "net7"),
            FailureKind::NoSuchInterface,
            "net7",
        ),
    ] {
        let both = vec![route("10.7.0.0/16", "", "net0"), wrong];
        assert_eq!(update_routes(client, both).await, Err(failed(kind, subject)));
        assert_eq!(lines(&list().await), expected);
    }
    let lost = vec![route("10.8.0.0/16", "203.0.113.1", "net0")];
    let error = update_routes(client, lost).await.unwrap_err();
    assert_eq!(
        error.kind(),
        Some(FailureKind::Guest),
        "nothing leads to the gateway"
    );
    assert!(error.to_string().contains("route to 10.8.0.0/16: "), "{error}");

    update_routes(client, all).await.unwrap();
    assert_eq!(lines(&list().await), expected);
    let left = [expected[2], expected[4], expected[6]];
    assert_eq!(lines(&update_routes(client, Vec::new()).await.unwrap()), left);
}

/// Neighbours are in the kernel's table, and stay.
async fn neighbors(client: &Client, inside: &mut Inside<'_>) {
    let add = async |address: &str, device: &str, lladdr: &str| {
        let request = AddARPNeighborsRequest {
            neighbors: MessageField::some(ARPNeighbors {
                arp_neighbors: vec![ARPNeighbor {
                    to_ip_address: MessageField::some(ip(address, "")),
                    device: device.into(),
                    lladdr: lladdr.into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        client.add_arp_neighbors(request).await
    };
    // Of Ethernet (1), complete and permanent (6): linux/if_arp.h.
    let table = "awk '$6 == \"net0\" {print $1, $2, $3, $4}' /proc/net/arp";
    for lladdr in ["02:00:00:00:00:09", "02:00:00:00:00:0a"] {
        add("192.0.2.9", "net0", lladdr).await.unwrap();
        add("2001:db8::9", "net0", lladdr).await.unwrap();
        assert_eq!(
            inside.done(table).await,
            format!("192.0.2.9 0x1 0x6 {lladdr}"),
            "in place of the other"
        );
    }
    for (address, device, lladdr, kind, subject) in [
        (
            "192.0.2.8",
            "net7",
            "02:00:00:00:00:08",
            FailureKind::NoSuchInterface,
            "net7",
        ),
        (
            "192.0.2",
            "net0",
            "02:00:00:00:00:08",
            FailureKind::Invalid,
            "address \"192.0.2\"",
        ),
        (
            "192.0.2.8",
            "net0",
            "2",
            FailureKind::Guest,
            "neighbour 192.0.2.8: Invalid argument (os error 22)",
        ),
    ] {
        assert_eq!(add(address, device, lladdr).await, Err(failed(kind, subject)));
    }
    assert_eq!(inside.done(table).await, "192.0.2.9 0x1 0x6 02:00:00:00:00:0a");
}

/// Programs in the place of a packet filter's, which keep what they are given, and complain of nonsense.
const FILTERS: &str = r#"
    export PATH=/usr/bin:/bin
    cd /usr/sbin && for family in ip ip6; do
    printf '#!/bin/sh\nPATH=/usr/bin:/bin; exec cat /run/%s\n' $family > ${family}tables-save
    printf '#!/bin/sh\nPATH=/usr/bin:/bin; cat > /run/new
        if grep -q ^nonsense /run/new; then echo "line 1 failed" >&2; exit 2; fi
        mv /run/new /run/%s; echo "taken with $*"\n' $family > ${family}tables-restore
    chmod 755 ${family}tables-save ${family}tables-restore
    done"#;

/// Tables are the text of the guest's own programs, of each family's, and they are where the agent looks for them.
async fn filters(client: &Client, inside: &mut Inside<'_>) {
    // What a guest without any has, is the root filesystem's then: there are no such programs in it, either.
    let program = format!(
        r#"my $usr = "{ROOT}/usr"; enter; mkdir "/usr"; mount $usr, "/usr", "none", 4096;
        for my $name ("bin", "sbin", "lib", "lib64") {{
            if (-d "/$name" && !-l "/$name") {{ mount "$usr/$name", "/$name", "none", 4096 }}
            else {{ symlink "usr/$name", "/$name" }}
        }}"#
    );
    inside.perl(&program).await;
    let get = async |is_ipv6: bool| {
        let request = GetIPTablesRequest {
            is_ipv6,
            ..Default::default()
        };
        client.get_ip_tables(request).await.map(|answer| answer.data)
    };
    let set = async |is_ipv6: bool, data: &[u8]| {
        let request = SetIPTablesRequest {
            is_ipv6,
            data: data.to_vec(),
            ..Default::default()
        };
        client.set_ip_tables(request).await.map(|answer| answer.data)
    };
    for (is_ipv6, name) in [(false, "iptables"), (true, "ip6tables")] {
        let missing = |suffix: &str| failed(FailureKind::NotFound, &format!("{name}-{suffix}"));
        assert_eq!(get(is_ipv6).await, Err(missing("save")));
        assert_eq!(set(is_ipv6, b"*filter\nCOMMIT\n").await, Err(missing("restore")));
    }
    inside.done(FILTERS).await;
    for (is_ipv6, name) in [(false, "iptables"), (true, "ip6tables")] {
        let rules = format!(
            "*filter\n{}COMMIT\n",
            format!("-A INPUT # of {name}\n").repeat(10_000)
        );
        assert_eq!(
            set(is_ipv6, rules.as_bytes()).await.unwrap(),
            b"taken with --wait 5\n"
        );
        assert!(get(is_ipv6).await.unwrap() == rules.as_bytes());
        let error = set(is_ipv6, b"nonsense\n").await;
        assert_eq!(
            error,
            Err(failed(
                FailureKind::Guest,
                &format!("{name}-restore: line 1 failed")
            ))
        );
        assert!(get(is_ipv6).await.unwrap() == rules.as_bytes(), "as it was");
    }
}

on_every_backend! {
    /// Conformance: api ListInterfaces
    /// Conformance: api UpdateInterface
    /// Conformance: api ListRoutes
    /// Conformance: api UpdateRoutes
    /// Conformance: api AddARPNeighbors
    async fn a_network_card_gets_names_addresses_routes_and_neighbours(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        let mut inside = Inside::new(&client).await;
        interfaces(&client, &mut inside).await;
        routes(&client, &mut inside).await;
        neighbors(&client, &mut inside).await;
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api GetIPTables
    /// Conformance: api SetIPTables
    async fn packet_filters_are_the_text_of_the_guests_own_programs(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        let mut inside = Inside::new(&client).await;
        filters(&client, &mut inside).await;
        sandbox.stop().await.unwrap();
    }
}
