//! Whether the kernel takes an SA of ours: the only way to find out whether it has ESP and the cipher.

use std::{fmt, net::IpAddr};

use secureoverlay_agent_core::{
    kernel::{Kernel, OpError, OpErrorKind},
    xfrm::{Actual, Net, Op, Sa, SaId},
};
use secureoverlay_keyring::{secret::SecretBytes, suite::Suite};

/// The ends of the trial SA: addresses that are only for documentation (RFC 5737), so no packet can match it.
const ENDS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 2)),
];
/// SPIs below are reserved (RFC 4303, section 2.1).
const SPI_MIN: u32 = 256;

/// How a trial went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The kernel took the SA, and let go of it.
    Taken,
    /// The kernel does not take it.
    Refused(OpError),
    /// It took the SA and does not let go of it.
    Left(OpError),
    /// There was no trial.
    Untried(String),
}

/// Adds an SA with a random key beside those in `actual`, and deletes it. What carries our mark: should this process be
/// killed in between, the agent takes it away after its grace, and `cleanup` at once.
pub fn try_suite<E: fmt::Display>(
    kernel: &mut impl Kernel,
    actual: &Actual,
    suite: Suite,
    mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Trial {
    let [src, dst] = ENDS;
    let states = actual.sas.iter().any(|sa| ENDS.contains(&sa.src) || ENDS.contains(&sa.id.dst));
    let hosts = ENDS.map(Net::host);
    if states || actual.policies.iter().any(|p| hosts.contains(&p.id.src) || hosts.contains(&p.id.dst)) {
        return Trial::Untried(format!(
            "there is an SA or a policy for {src} or {dst}, the addresses for trials"
        ));
    }
    let mut spi = [0; 4];
    let key = random(&mut spi)
        .and_then(|()| SecretBytes::try_fill(suite.key_len() + Suite::SALT_LEN, |bytes| random(bytes)));
    let key = match key {
        Ok(key) => key,
        Err(error) => return Trial::Untried(format!("no random numbers for a key: {error}")),
    };
    let id = SaId { dst, spi: u32::from_ne_bytes(spi).max(SPI_MIN) };
    let added = one(kernel, Op::AddSa(Sa { src, id, suite, key }));
    if let Err(error) = &added
        && error.kind != OpErrorKind::Unknown
    {
        return Trial::Refused(error.clone());
    }
    // Also where it is not known whether it is there.
    match (added, one(kernel, Op::DeleteSa(id))) {
        (_, Err(error)) => Trial::Left(error),
        (Err(error), Ok(())) => Trial::Untried(error.to_string()),
        (Ok(()), Ok(())) => Trial::Taken,
    }
}

fn one(kernel: &mut impl Kernel, op: Op) -> Result<(), OpError> {
    kernel.apply(&[op]).pop().expect("there is an outcome for each operation")
}

#[cfg(test)]
mod tests {
    use std::io;

    use secureoverlay_agent_core::{
        fake_kernel::FakeKernel,
        kernel::OpError,
        xfrm::{Direction, PolicyId},
    };
    use secureoverlay_agent_kernel::KernelError;

    use super::*;

    fn numbers(bytes: &mut [u8]) -> io::Result<()> {
        bytes.fill(7);
        Ok(())
    }

    /// Answers in turn, and remembers what it was asked.
    struct Scripted(Vec<Result<(), OpErrorKind>>, Vec<Op>);

    impl Kernel for Scripted {
        type Error = KernelError;

        fn dump(&mut self) -> Result<Actual, KernelError> {
            Ok(Actual::default())
        }

        fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
            self.1.extend_from_slice(ops);
            let error = |kind| OpError { what: "it".into(), kind, detail: "no".into() };
            ops.iter().map(|_| self.0.remove(0).map_err(error)).collect()
        }
    }

    fn scripted(answers: &[Result<(), OpErrorKind>]) -> (Trial, Vec<Op>) {
        let mut kernel = Scripted(answers.to_vec(), Vec::new());
        let trial = try_suite(&mut kernel, &Actual::default(), Suite::Aes256Gcm16, numbers);
        assert!(kernel.0.is_empty(), "{trial:?}");
        (trial, kernel.1)
    }

    #[test]
    fn nothing_is_left() {
        let mut kernel = FakeKernel::default();
        for suite in Suite::ALL {
            let trial = try_suite(&mut &mut kernel, &Actual::default(), suite, numbers);
            assert_eq!((trial, kernel.sas.len()), (Trial::Taken, 0), "{suite}");
        }
        assert_eq!(kernel.done, 6, "each was added and deleted");
    }

    #[test]
    fn what_was_or_may_have_been_added_is_deleted() {
        use OpErrorKind::{Refused, Unknown, Unsupported};
        let (trial, ops) = scripted(&[Ok(()), Ok(())]);
        let (Trial::Taken, [Op::AddSa(sa), Op::DeleteSa(id)]) = (trial, &ops[..]) else { panic!("{ops:?}") };
        assert_eq!((sa.id, sa.src, sa.key.len(), sa.id.spi), (*id, ENDS[0], 36, 0x0707_0707));
        let (trial, ops) = scripted(&[Err(Unsupported)]);
        assert!(matches!(trial, Trial::Refused(error) if error.kind == Unsupported) && ops.len() == 1);
        let (trial, ops) = scripted(&[Err(Unknown), Ok(())]);
        assert!(matches!(trial, Trial::Untried(_)) && ops.len() == 2);
        for added in [Ok(()), Err(Unknown)] {
            let (trial, _) = scripted(&[added, Err(Refused)]);
            assert!(matches!(&trial, Trial::Left(error) if error.kind == Refused), "{trial:?}");
        }
    }

    #[test]
    fn an_spi_is_never_a_reserved_one() {
        let mut kernel = Scripted(vec![Ok(()), Ok(())], Vec::new());
        let zeros = |_: &mut [u8]| io::Result::Ok(());
        assert_eq!(try_suite(&mut kernel, &Actual::default(), Suite::default(), zeros), Trial::Taken);
        assert!(matches!(&kernel.1[0], Op::AddSa(sa) if sa.id.spi == 256), "{:?}", kernel.1);
    }

    #[test]
    fn what_is_in_use_is_left_alone() {
        let mut kernel = FakeKernel::default();
        kernel.add_foreign_sa(SaId { dst: ENDS[1], spi: 0x300 });
        let policy = PolicyId::tunnel(Direction::Out, Net::host(ENDS[0]), Net::host(ENDS[1]));
        let mut other = FakeKernel::default();
        other.add_foreign_policy(policy);
        for mut kernel in [kernel, other] {
            let actual = (&mut kernel).dump().unwrap();
            let trial = try_suite(&mut &mut kernel, &actual, Suite::default(), numbers);
            assert!(matches!(&trial, Trial::Untried(why) if why.contains("203.0.113.2")), "{trial:?}");
            assert_eq!(kernel.done, 0);
        }
    }

    #[test]
    fn without_random_numbers_there_is_no_trial() {
        let mut kernel = FakeKernel::default();
        let none = |_: &mut [u8]| Err(io::Error::other("none left"));
        let trial = try_suite(&mut &mut kernel, &Actual::default(), Suite::default(), none);
        assert!(matches!(&trial, Trial::Untried(why) if why.contains("none left")), "{trial:?}");
        assert_eq!(kernel.done, 0);
    }
}
