// PASSES: lower-to-htp{tokens=4},tile-htp{tile_bytes=512}

builtin.module attributes {mqc.level = "int", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xsi32> {
    %x = int.embedding %ids {multiplier = #mqc.weight<"m", "0", tensor<16xsi32>>, shift = #mqc.weight<"s", "0", tensor<16xsi8>>, table = #mqc.weight<"table", "0", tensor<16x8xsi8>>, zero_point = 32768} : (tensor<?xi64>) -> tensor<?x8xui16>
    %n.acc = int.rms_norm %x {epsilon = 80, groups = 1, x_zero = 32768} : (tensor<?x8xui16>) -> tensor<?x8xsi32>
    %n = int.requant %n.acc {multiplier = #mqc.weight<"nm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ns", "0", tensor<1xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %q.acc = int.linear %n {acc_shift = 0, bias = #mqc.weight<"bq", "0", tensor<8xsi32>>, weight = #mqc.weight<"wq", "0", tensor<8x8xsi8>>, weight_bits = 4, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x8xsi32>
    %q = int.requant %q.acc {multiplier = #mqc.weight<"qm", "0", tensor<8xsi32>>, shift = #mqc.weight<"qs", "0", tensor<8xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %r.acc = int.rope %q, %positions {cos = #mqc.weight<"cos", "0", tensor<8x2xsi16>>, sin = #mqc.weight<"sin", "0", tensor<8x2xsi16>>, head_dim = 4, interleaved = 0, x_zero = 128} : (tensor<?x8xui8>, tensor<?xi64>) -> tensor<?x8xsi32>
    %r = int.requant %r.acc {multiplier = #mqc.weight<"qm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ns", "0", tensor<1xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %k = int.lut %q {table = #mqc.weight<"lut", "0", tensor<256xui8>>} : (tensor<?x8xui8>) -> tensor<?x8xui8>
    %a = int.attention %r, %k, %q {layer = 0, heads = 2, kv_heads = 2, q_zero = 3, k_zero = 4, v_zero = 5, score_multiplier = 1073741824, score_shift = 2, multiplier = 1073741824, shift = 14, zero_point = 128} : (tensor<?x8xui8>, tensor<?x8xui8>, tensor<?x8xui8>) -> tensor<?x8xui8>
    %l.acc = int.linear %a {acc_shift = 0, bias = #mqc.weight<"bl", "0", tensor<16xsi32>>, weight = #mqc.weight<"wl", "0", tensor<16x8xsi8>>, weight_bits = 8, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x16xsi32>
    %l = int.requant %l.acc {multiplier = #mqc.weight<"lm", "0", tensor<16xsi32>>, shift = #mqc.weight<"ls", "0", tensor<16xsi8>>, zero_point = 0} : (tensor<?x16xsi32>) -> tensor<?x16xsi32>
    func.return %l : tensor<?x16xsi32>
  }
}

// CHECK-LABEL: func.func @prefill_4(%0: tensor<4xi64>, %1: tensor<4xi64>) -> tensor<4x16xsi32, "ddr">
/// constants lie in ddr, what is computed in vtcm
// CHECK-NEXT: %table = htp.constant {{.*}} -> tensor<16x8xsi8, "ddr">
/// the first copy begins before anything is computed, each other when the one before has ended
// CHECK: %n.scale_1 = htp.dma_load %n.scale {first = 0 : i64}
// CHECK-NEXT: %x = htp.gather_tokens {{.*}} -> tensor<4x8xui16, "vtcm">
// CHECK-NEXT: %n.scale_2 = htp.dma_wait %n.scale_1
// CHECK-NEXT: %wq_1 = htp.dma_load %wq
// CHECK-NEXT: %n = htp.rms_norm %x, %n.scale_2
// CHECK-NEXT: %wq_2 = htp.dma_wait %wq_1
// CHECK: htp.fully_connected %n, %wq_2
/// heads of the cache are copied once they are written
// CHECK: %a.keys_1 = htp.cache_write_keys {{.*}} -> tensor<2x256xui8, "ddr">
// CHECK-NEXT: %a.keys_2 = htp.dma_load %a.keys_1 {first = 0 : i64}
// CHECK-NOT: htp.strided_slice
// CHECK: %a.values_5 = htp.dma_wait
/// logits leave in tiles, and a tile is waited for when the next is to leave
// CHECK: %l = htp.empty : () -> tensor<4x16xsi32, "ddr">
// CHECK: %l_1 = htp.fully_connected {{.*}} -> tensor<4x16xsi32, "vtcm">
// CHECK-NEXT: %l_2 = htp.dma_store %l_1, %l {first = 0 : i64}
// CHECK-NEXT: %l_3 = htp.dma_wait %l_2
// CHECK-NEXT: func.return %l_3
