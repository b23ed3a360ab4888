; What LLVM calls where a processor cannot convert halves (x86-64 without F16C): compiler-rt's functions of these names,
; hidden in the library, so that it needs no compiler's runtime. Rounding is to nearest even.

define hidden float @__extendhfsf2(half %value) {
  %short = bitcast half %value to i16
  %bits = zext i16 %short to i32
  %magnitude = and i32 %bits, 32767
  %signed = and i32 %bits, 32768
  %sign = shl i32 %signed, 16
  %moved = shl i32 %magnitude, 13
  %small = bitcast i32 %moved to float
  %scaled = fmul float %small, 0x46F0000000000000 ; 2^112: halves' exponents begin there, and subnormals come out right
  %finite = bitcast float %scaled to i32
  %special = or i32 %moved, 2139095040
  %is_special = icmp uge i32 %magnitude, 31744
  %found = select i1 %is_special, i32 %special, i32 %finite
  %all = or i32 %found, %sign
  %result = bitcast i32 %all to float
  ret float %result
}

define hidden half @__truncsfhf2(float %value) {
  %bits = bitcast float %value to i32
  %magnitude = and i32 %bits, 2147483647
  %is_nan = icmp ugt i32 %magnitude, 2139095040
  %beyond = select i1 %is_nan, i32 32256, i32 31744
  %as_float = bitcast i32 %magnitude to float
  %added = fadd float %as_float, 5.000000e-01 ; whose last bit is worth 2^-24, as a subnormal half's
  %added_bits = bitcast float %added to i32
  %subnormal = sub i32 %added_bits, 1056964608
  %shifted = lshr i32 %magnitude, 13
  %odd = and i32 %shifted, 1
  %rebiased = add i32 %magnitude, -939520001 ; ((15 - 127) << 23) + 4095
  %even = add i32 %rebiased, %odd
  %normal = lshr i32 %even, 13
  %is_subnormal = icmp ult i32 %magnitude, 947912704 ; 2^-14
  %within = select i1 %is_subnormal, i32 %subnormal, i32 %normal
  %is_beyond = icmp uge i32 %magnitude, 1199570944 ; 2^16
  %found = select i1 %is_beyond, i32 %beyond, i32 %within
  %moved = lshr i32 %bits, 16
  %sign = and i32 %moved, 32768
  %all = or i32 %found, %sign
  %short = trunc i32 %all to i16
  %result = bitcast i16 %short to half
  ret half %result
}
