//! What messages about links and routes have in common.

use std::{
    io::Cursor,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use neli::{
    FromBytesWithInput, ToBytes, attr::Attribute, consts::rtnl::RtaType, err::DeError, rtnl::RtAttrHandle,
};

pub(super) fn encode(message: &impl ToBytes) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    message.to_bytes(&mut bytes).expect("a Vec takes all bytes");
    bytes.into_inner()
}

pub(super) fn decode<M: FromBytesWithInput<Input = usize>>(payload: &[u8]) -> Result<M, DeError> {
    M::from_bytes_with_input(&mut Cursor::new(payload), payload.len())
}

pub(super) fn word<T: RtaType>(attributes: &RtAttrHandle<'_, T>, kind: T) -> Result<Option<u32>, DeError> {
    attributes.get_attribute(kind).map(Attribute::get_payload_as).transpose()
}

pub(super) fn address<T: RtaType>(attributes: &RtAttrHandle<'_, T>, kind: T) -> Option<IpAddr> {
    let bytes = attributes.get_attribute(kind)?.payload().as_ref();
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into());
    v4().or_else(v6)
}

/// Not neli's own conversion, which panics when there is not even a final NUL.
pub(super) fn text<T>(attribute: &impl Attribute<T>) -> String {
    String::from_utf8_lossy(attribute.payload().as_ref()).trim_end_matches('\0').to_owned()
}
