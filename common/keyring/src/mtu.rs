//! How large the tunnel's MTU may be.

use crate::suite::Suite;

/// Headers before the inner packet: IPv4, ESP header and IV (RFC 4303, RFC 4106).
const HEADERS: u32 = 20 + 8 + 8;
/// Pad length and next header, inside the encryption.
const TRAILER: u32 = 2;
/// MKE's overhead for its 8-byte ICV: 20 bytes of outer IPv4 header and 26 of ESP.
const MKE_OVERHEAD: u32 = 46;

/// Both bounds on a tunnel's MTU, and the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// MTU of the external interface that it is for.
    pub external: u32,
    /// MKE's published rule: EXTMTU − 46 − ((EXTMTU − 46) mod 4), with the overhead of the suite's ICV.
    pub mke: u32,
    /// The largest that the kernel can carry without fragmentation.
    pub kernel: u32,
}

impl Bound {
    /// The bounds for a tunnel over an interface with MTU `external`. Both are 0 where nothing fits.
    #[must_use]
    pub const fn new(external: u32, suite: Suite) -> Self {
        let icv = suite.icv_len() as u32;
        let under_mke = external.saturating_sub(MKE_OVERHEAD - Suite::Aes128Gcm8.icv_len() as u32 + icv);
        let payload = external.saturating_sub(HEADERS + icv);
        // ESP pads payload and trailer to a multiple of 4 (RFC 4303, section 2.4).
        let kernel = (payload - payload % 4).saturating_sub(TRAILER);
        Self { external, mke: under_mke - under_mke % 4, kernel }
    }

    /// The largest MTU that is accepted: the smaller of both.
    #[must_use]
    pub const fn accepted(self) -> u32 {
        if self.mke < self.kernel { self.mke } else { self.kernel }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(external: u32, suite: Suite) -> (u32, u32) {
        let bound = Bound::new(external, suite);
        (bound.mke, bound.kernel)
    }

    #[test]
    fn as_measured_on_a_kernel() {
        assert_eq!(bounds(1500, Suite::Aes128Gcm8), (1452, 1454));
        assert_eq!(bounds(1450, Suite::Aes128Gcm8), (1404, 1402));
        assert_eq!(bounds(1502, Suite::Aes128Gcm8), (1456, 1454));
        assert_eq!(Bound::new(1450, Suite::Aes128Gcm8).accepted(), 1402);
        assert_eq!(Bound::new(1500, Suite::Aes128Gcm8).accepted(), 1452);
        assert_eq!(bounds(1500, Suite::Aes256Gcm16), (1444, 1446));
    }

    #[test]
    fn accepted_packets_fit() {
        for suite in Suite::ALL {
            for external in 0..10_000 {
                let inner = Bound::new(external, suite).accepted();
                if inner > 0 {
                    let padded = (inner + TRAILER).next_multiple_of(4);
                    assert!(
                        HEADERS + padded + suite.icv_len() as u32 <= external,
                        "{external} {suite} {inner}"
                    );
                }
            }
        }
    }
}
