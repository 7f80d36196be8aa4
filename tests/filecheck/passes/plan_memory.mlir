// PASSES: plan-memory

/// three values of 64 bytes are alive at once at most
// CHECK: builtin.module attributes {mqc.level = "int", mqc.context = 8 : i64, mqc.arena = 192 : i64}
builtin.module attributes {mqc.level = "int", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x8xsi32> {
    // CHECK: %x = int.embedding {{.*}} offset = 0 : i64
    %x = int.embedding %ids {multiplier = #mqc.weight<"m", "0", tensor<16xsi32>>, shift = #mqc.weight<"s", "0", tensor<16xsi8>>, table = #mqc.weight<"table", "0", tensor<16x8xsi8>>, zero_point = 128} : (tensor<?xi64>) -> tensor<?x8xui8>
    // CHECK: %a = int.lut %x {offset = 64 : i64
    %a = int.lut %x {table = #mqc.weight<"ta", "0", tensor<256xui8>>} : (tensor<?x8xui8>) -> tensor<?x8xui8>
    // CHECK: %b = int.lut %a {offset = 128 : i64
    %b = int.lut %a {table = #mqc.weight<"tb", "0", tensor<256xui8>>} : (tensor<?x8xui8>) -> tensor<?x8xui8>
    /// the place of %a is free again
    // CHECK: %c = int.lut %b {offset = 64 : i64
    %c = int.lut %b {table = #mqc.weight<"tc", "0", tensor<256xui8>>} : (tensor<?x8xui8>) -> tensor<?x8xui8>
    /// a fused value takes no place, but keeps its operands alive until the op that it is fused into
    // CHECK: %m.acc = int.mul %c, %x
    // CHECK-NOT: offset
    // CHECK-SAME: -> tensor<?x8xsi32>
    // CHECK: %m = int.requant %m.acc {{.*}} offset = 128 : i64
    %m.acc = int.mul %c, %x {a_zero = 0, acc_shift = 0, b_zero = 0, fused_into = "int.requant"} : (tensor<?x8xui8>, tensor<?x8xui8>) -> tensor<?x8xsi32>
    %m = int.requant %m.acc {multiplier = #mqc.weight<"mm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ms", "0", tensor<1xsi8>>, zero_point = 0} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    /// logits go to the caller
    // CHECK: %l = int.requant %l.acc {multiplier{{.*}}, shift = {{.*}}, zero_point = 0 : i64}
    %l.acc = int.linear %m {acc_shift = 0, bias = #mqc.weight<"bl", "0", tensor<8xsi32>>, fused_into = "int.requant", weight = #mqc.weight<"wl", "0", tensor<8x8xsi8>>, weight_bits = 8, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x8xsi32>
    %l = int.requant %l.acc {multiplier = #mqc.weight<"lm", "0", tensor<8xsi32>>, shift = #mqc.weight<"ls", "0", tensor<8xsi8>>, zero_point = 0} : (tensor<?x8xsi32>) -> tensor<?x8xsi32>
    func.return %l : tensor<?x8xsi32>
  }
}
