//! What a flush of policies took, brought back from memory: before any dump, so that nothing passes in the clear while
//! the kernel is read.

use std::collections::BTreeMap;

use crate::xfrm::{Direction, Op, Policy, PolicyAction, PolicyId};

/// The policies of ours that the last run left in the kernel, as operations. What turns plaintext away comes first.
#[must_use]
pub fn restore(policies: &BTreeMap<PolicyId, PolicyAction>) -> Vec<Op> {
    let mut all: Vec<Policy> =
        policies.iter().map(|(id, action)| Policy { id: *id, action: *action }).collect();
    all.sort_by_key(|policy| (rank(policy), policy.id));
    all.into_iter().map(Op::AddPolicy).collect()
}

/// Few policies let excluded nodes through the blocks, so they cost no time.
const fn rank(policy: &Policy) -> u8 {
    match (policy.action, policy.id.direction) {
        _ if policy.id.is_probe() => 4,
        (PolicyAction::Allow, _) => 0,
        (PolicyAction::Block, _) => 1,
        (PolicyAction::Esp(_), Direction::In) => 2,
        (PolicyAction::Esp(_), Direction::Out) => 3,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::{testing::address, xfrm::Net};

    #[test]
    fn blocks_come_before_pins_and_probes_last() {
        let host = |n: u8| Net::host(address(n).ip());
        let anywhere = Net { addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };
        let expected = [
            (PolicyId::tunnel(Direction::Out, host(1), host(9)), PolicyAction::Allow),
            (PolicyId::tunnel(Direction::In, anywhere, anywhere), PolicyAction::Block),
            (PolicyId::tunnel(Direction::Out, host(1), anywhere), PolicyAction::Block),
            (PolicyId::tunnel(Direction::In, host(2), host(1)), PolicyAction::Esp(None)),
            (PolicyId::tunnel(Direction::Out, host(1), host(2)), PolicyAction::Esp(Some(7))),
            (PolicyId::probe(Direction::In, host(2).addr, host(1).addr, 9468), PolicyAction::Esp(None)),
        ];
        let ops = restore(&expected.into());
        assert_eq!(ops, expected.map(|(id, action)| Op::AddPolicy(Policy { id, action })));
        assert_eq!(restore(&BTreeMap::new()), []);
    }
}
