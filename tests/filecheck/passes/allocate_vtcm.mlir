// PASSES: lower-to-htp{tokens=4},tile-htp{tile_bytes=768},allocate-vtcm{vtcm_bytes=65536}

builtin.module attributes {mqc.level = "int", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x96xsi32> {
    %x = int.embedding %ids {multiplier = #mqc.weight<"m", "0", tensor<96xsi32>>, shift = #mqc.weight<"s", "0", tensor<96xsi8>>, table = #mqc.weight<"table", "0", tensor<96x8xsi8>>, zero_point = 32768} : (tensor<?xi64>) -> tensor<?x8xui16>
    %n.acc = int.rms_norm %x {epsilon = 80, groups = 1, x_zero = 32768} : (tensor<?x8xui16>) -> tensor<?x8xsi32>
    %n = int.requant %n.acc {multiplier = #mqc.weight<"nm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ns", "0", tensor<1xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %q.acc = int.linear %n {acc_shift = 0, bias = #mqc.weight<"bq", "0", tensor<8xsi32>>, weight = #mqc.weight<"wq", "0", tensor<8x8xsi8>>, weight_bits = 4, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x8xsi32>
    %q = int.requant %q.acc {multiplier = #mqc.weight<"qm", "0", tensor<8xsi32>>, shift = #mqc.weight<"qs", "0", tensor<8xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %r.acc = int.rope %q, %positions {cos = #mqc.weight<"cos", "0", tensor<8x2xsi16>>, sin = #mqc.weight<"sin", "0", tensor<8x2xsi16>>, head_dim = 4, interleaved = 0, x_zero = 128} : (tensor<?x8xui8>, tensor<?xi64>) -> tensor<?x8xsi32>
    %r = int.requant %r.acc {multiplier = #mqc.weight<"qm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ns", "0", tensor<1xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %k = int.lut %q {table = #mqc.weight<"lut", "0", tensor<256xui8>>} : (tensor<?x8xui8>) -> tensor<?x8xui8>
    %a = int.attention %r, %k, %q {layer = 0, heads = 2, kv_heads = 2, q_zero = 3, k_zero = 4, v_zero = 5, score_multiplier = 1073741824, score_shift = 2, multiplier = 1073741824, shift = 14, zero_point = 128} : (tensor<?x8xui8>, tensor<?x8xui8>, tensor<?x8xui8>) -> tensor<?x8xui8>
    %l.acc = int.linear %a {acc_shift = 0, bias = #mqc.weight<"bl", "0", tensor<96xsi32>>, weight = #mqc.weight<"wl", "0", tensor<96x8xsi8>>, weight_bits = 8, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x96xsi32>
    %l = int.requant %l.acc {multiplier = #mqc.weight<"lm", "0", tensor<96xsi32>>, shift = #mqc.weight<"ls", "0", tensor<96xsi8>>, zero_point = 0} : (tensor<?x96xsi32>) -> tensor<?x96xsi32>
    func.return %l : tensor<?x96xsi32>
  }
}

// CHECK-LABEL: builtin.module attributes {{.*}}mqc.vtcm = 65536 : i64
// CHECK-LABEL: func.func @prefill_4({{.*}} attributes {vtcm_peak = {{[0-9]+}} : i64, vtcm_live = {{[0-9]+}} : i64}
/// a value that is made in tiles has one place
// CHECK: %a = htp.empty {offset = {{[0-9]+}} : i64}
/// what is in use at once lies apart: the tile that is multiplied and the one that is being copied
// CHECK: %wl_1 = htp.dma_load %wl {first = 0 : i64, offset = [[ONE:[0-9]+]] : i64}
// CHECK: %wl_3 = htp.dma_load %wl {first = 1 : i64, offset = [[TWO:[0-9]+]] : i64}
// CHECK: htp.fully_connected {{.*}}offset = {{[0-9]+}} : i64, outputs = 32
// CHECK-NEXT: htp.dma_store
// CHECK: %wl_5 = htp.dma_load %wl {first = 2 : i64, offset = [[ONE]] : i64}
// CHECK-LABEL: func.func @decode
