// PASSES: quantize-weights,lower-to-int

/// one step of the logits is 2^-20 of the largest seen
// CHECK: builtin.module attributes {mqc.level = "int", mqc.context = 8 : i64, mqc.logit_scale = 1.1444091796875{{0*}}e-05 : f64}
// CHECK-NEXT: func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xsi32>
builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    // CHECK-NEXT: %x = int.embedding %ids {multiplier = #mqc.weight<"x.multiplier", "{{[0-9a-f]+}}", tensor<16xsi32>>, represents = !quant.uniform<u16:f32, 0.001:32768>, shift = #mqc.weight<"x.shift", "{{[0-9a-f]+}}", tensor<16xsi8>>, table = #mqc.weight<"table", "{{[0-9a-f]+}}", tensor<16x8xsi8>>, zero_point = 32768 : i64} : (tensor<?xi64>) -> tensor<?x8xui16>
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x8xf32>>} : (tensor<?xi64>) -> tensor<?x8x!quant.uniform<u16:f32, 0.001:32768>>
    /// epsilon in steps of the input: 8 · 1e-5 / 0.001²
    // CHECK-NEXT: %n.direction = int.rms_norm %x {epsilon = 80 : i64, groups = 1 : i64, x_zero = 32768 : i64} : (tensor<?x8xui16>) -> tensor<?x8xsi32>
    // CHECK-NEXT: %n = int.requant %n.direction {{.*}} tensor<1xsi32>>{{.*}} zero_point = 128 : i64} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %n = llm.rms_norm %x {eps = 1.0e-05, groups = 1} : (tensor<?x8x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    // CHECK-NEXT: %q.acc = int.linear %n {acc_shift = 0 : i64, bias = {{.*}} weight_bits = 8 : i64, x_zero = 128 : i64} : (tensor<?x8xui8>) -> tensor<?x8xsi32>
    // CHECK-NEXT: %q = int.requant %q.acc {{.*}} tensor<8xsi32>>
    %q = llm.linear %n {weight = #mqc.weight<"wq", "0", tensor<8x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.1:120>>
    // CHECK-NEXT: %r.rotated = int.rope %q, %positions {cos = #mqc.weight<"rope.cos", "{{[0-9a-f]+}}", tensor<8x2xsi16>>
    // CHECK-NEXT: %r = int.requant %r.rotated
    %r = llm.rope %q, %positions {cos = #mqc.weight<"table.cos", "0", tensor<8x2xf32>>, head_dim = 4, interleaved = 0, sin = #mqc.weight<"half.sin", "0", tensor<8x2xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.1:120>>, tensor<?xi64>) -> tensor<?x8x!quant.uniform<u8:f32, 0.1:128>>
    // CHECK-NEXT: %a = int.attention %r, %r, %q {heads = 2 : i64, k_zero = 128 : i64, kv_heads = 2 : i64, layer = 0 : i64, {{.*}} v_zero = 120 : i64, window = 4 : i64, zero_point = 128 : i64}
    %a = llm.attention %r, %r, %q {heads = 2, kv_heads = 2, layer = 0, scale = 0.5, window = 4} : (tensor<?x8x!quant.uniform<u8:f32, 0.1:128>>, tensor<?x8x!quant.uniform<u8:f32, 0.1:128>>, tensor<?x8x!quant.uniform<u8:f32, 0.1:120>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.1:128>>
    // CHECK-NEXT: %s = int.lut %a {function = "silu", represents = !quant.uniform<u16:f32, 0.001:400>, table = #mqc.weight<"s.table", "{{[0-9a-f]+}}", tensor<256xui16>>} : (tensor<?x8xui8>) -> tensor<?x8xui16>
    %s = llm.silu %a : (tensor<?x8x!quant.uniform<u8:f32, 0.1:128>>) -> tensor<?x8x!quant.uniform<u16:f32, 0.001:400>>
    /// the product of two 16-bit values is shifted into s32
    // CHECK-NEXT: %m.product = int.mul %s, %x {a_zero = 400 : i64, acc_shift = 2 : i64, b_zero = 32768 : i64}
    // CHECK-NEXT: %m = int.requant %m.product
    %m = llm.mul %s, %x : (tensor<?x8x!quant.uniform<u16:f32, 0.001:400>>, tensor<?x8x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x8x!quant.uniform<u16:f32, 0.001:32768>>
    // CHECK-NEXT: %y = int.add %x, %m {{.*}} -> tensor<?x8xui16>
    %y = llm.add %x, %m : (tensor<?x8x!quant.uniform<u16:f32, 0.001:32768>>, tensor<?x8x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x8x!quant.uniform<u16:f32, 0.002:32768>>
    // CHECK-NEXT: %l.acc = int.linear %y
    // CHECK-NEXT: %l = int.requant %l.acc {{.*}} -> tensor<?x16xsi32>
    // CHECK-NEXT: func.return %l : tensor<?x16xsi32>
    %l = llm.linear %y {range = array<f64: -12.0, 10.0>, weight = #mqc.weight<"wl", "0", tensor<16x8xf32>>} : (tensor<?x8x!quant.uniform<u16:f32, 0.002:32768>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
